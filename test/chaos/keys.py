"""Long keys, keys by reference, and very many savepoints."""

from world import Family


class Keys(Family):
    group = "keys"
    weight = 3
    writing = 2
    check_share = 0.6
    # of a writer's backend, for the contexts of some thousand subtransactions
    MEMORY = 12 << 20

    def create(self, s):
        self.make_schemas(s)
        n = self.name
        # the queue's chunks hold 8,000 bytes; these keys compress well, so that an index takes them
        s.q("""BEGIN; CREATE TABLE {0}.long (k text PRIMARY KEY, v text, n int DEFAULT 0, mark text DEFAULT '{0}');
            INSERT INTO {0}.long (k, v) SELECT repeat('k', 9000 + 500 * i) || i, 'x' FROM generate_series(1, 20) i;
            CREATE TABLE {0}.u (k uuid PRIMARY KEY, v text, n int DEFAULT 0, mark text DEFAULT '{0}');
            CREATE TABLE {0}.m (k numeric, t text, v text, n int DEFAULT 0, mark text DEFAULT '{0}', PRIMARY KEY (k, t));
            INSERT INTO {0}.u (k, v) SELECT md5(i::text)::uuid, 'x' FROM generate_series(1, 300) i;
            INSERT INTO {0}.m (k, t, v) SELECT i / 7.0, 't' || i, 'x' FROM generate_series(1, 300) i; COMMIT;""".format(n))
        for t in ("long", "u", "m"):
            self.add(s, "%s.%s" % (n, t), marks=[n])

    def operations(self):
        return ((4, self.long_twice), (2, self.storm), (2, self.mixed), (1, self.long_row))

    def long_twice(self, s, r):
        """A change whose key fits no chunk, and another while the first is being seen to."""
        self.world.env.slow_target(0.5 + r.random())
        s.q("UPDATE %s.long SET v = 'first', n = n + 1 WHERE length(k) %% 2 = %d" % (self.name, r.randrange(2)))
        self.world.stop.wait(0.2 + 0.6 * r.random())
        s.q("UPDATE %s.long SET v = 'second', n = n + 1" % self.name)
        return "updated twice"

    def long_row(self, s, r):
        i = r.randrange(21, 40)
        s.q("INSERT INTO %s.long (k, v) VALUES (repeat('q', %d) || '%d', 'one') ON CONFLICT (k) DO UPDATE SET n = long.n + 1;"
            "DELETE FROM %s.long WHERE k = repeat('q', %d) || '%d'" % (self.name, 8000 + 600 * (i - 20), i, self.name, 8000 + 600 * (i - 19), i + 1))
        return "key %d" % i

    def mixed(self, s, r):
        s.q("BEGIN; UPDATE {0}.long SET n = n + 1 WHERE k LIKE '%{1}'; UPDATE {0}.u SET n = n + 1 WHERE k < md5('{1}')::uuid; "
            "UPDATE {0}.m SET t = CASE WHEN t LIKE '%x' THEN rtrim(t, 'x') ELSE t || 'x' END, n = n + 1 WHERE k < {1}; COMMIT;".format(self.name, r.randrange(10)))
        return "all three"

    def storm(self, s, r):
        """Each savepoint costs memory until the end of the transaction, or does not."""
        t, key = r.choice((("u", "md5((i %% 300)::text)::uuid"), ("m", "(i %% 300) / 7.0, 't' || i %% 300")))
        count = r.choice((500, 3000))
        statement = ("INSERT INTO %s.%s (k%s, v) VALUES (%s, 's') ON CONFLICT (k%s) DO UPDATE SET n = %s.n + 1;"
                     % (self.name, t, ", t" if t == "m" else "", key.replace("%%", "%"), ", t" if t == "m" else "", t))
        rows = s.q("BEGIN; DO $$ BEGIN FOR i IN 1..%d LOOP BEGIN %s EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$; "
                   "SELECT sum(total_bytes) FROM pg_backend_memory_contexts; COMMIT;" % (count, statement))
        used = int(rows[0])
        if used > self.MEMORY:
            self.world.complaints["%d savepoints, key of %s: %d MB in the writer's backend" % (count, t, used >> 20)] += 1
            self.world.note(self, "MEMORY: %d savepoints, %d bytes" % (count, used))
        s.close()           # a backend that starts small the next time
        return "%d savepoints, table %s, %.1f MB" % (count, t, used / 1048576)

    def script(self, r):
        n = self.name
        i = r.randrange(1, 301)
        x = r.random()
        if x < 0.3:
            return "UPDATE %s.long SET n = n + 1, v = 'w%d' WHERE k = repeat('k', 9000 + 500 * %d) || %d;" % (n, i, i % 20, i % 20)
        if x < 0.6:
            return "UPDATE %s.u SET n = n + 1, v = 'w%d' WHERE k = md5('%d')::uuid;" % (n, i, i)
        lines = ["BEGIN;"]
        for j in range(r.randrange(3, 12)):
            lines.append("SAVEPOINT s; UPDATE %s.m SET n = n + 1 WHERE t = 't%d'; %s" % (n, r.randrange(1, 301), r.choice(("RELEASE s;", "ROLLBACK TO s;"))))
        lines.append(r.choice(("COMMIT;", "COMMIT;", "ROLLBACK;")))
        return "\n".join(lines)
