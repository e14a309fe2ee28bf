"""The script that people write: psycopg, the crate client, executemany.

usage: peer.py CONNINFO URL TABLE full | since TIMESTAMP

Upserts all rows of public.TABLE, or those with updated_at > TIMESTAMP, in
thousands, into bench_peer.TABLE; prints how many, and the seconds it took.
"""

import json
import sys
import time

import psycopg
from crate import client

COLUMNS = ["id", "customer_id", "status", "price", "quantity", "updated_at", "is_deleted"]
BATCH = 1000


def main():
    conninfo, url, table, mode = sys.argv[1:5]
    upsert = "INSERT INTO bench_peer.{} ({}) VALUES ({}) ON CONFLICT (id) DO UPDATE SET {}".format(
        table, ", ".join(COLUMNS), ", ".join("?" * len(COLUMNS)),
        ", ".join(f"{c} = excluded.{c}" for c in COLUMNS[1:]))
    select = f"SELECT {', '.join(COLUMNS)} FROM {table}"
    args = []
    if mode == "since":
        select += " WHERE updated_at > %s"
        args = [sys.argv[5]]

    with psycopg.connect(conninfo) as pg, client.connect(url) as crate:
        target = crate.cursor()
        start = time.monotonic()
        n = 0
        with pg.cursor(name="sync") as source:
            source.itersize = BATCH
            source.execute(select, args)
            while rows := source.fetchmany(BATCH):
                for result in target.executemany(upsert, rows):
                    if result["rowcount"] != 1:
                        sys.exit(f"a row failed: {result}")
                n += len(rows)
        print(json.dumps({"rows": n, "seconds": time.monotonic() - start}))


main()
