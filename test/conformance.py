#!/usr/bin/env python3
"""One list of statements for the stand-in and for a real CrateDB: they must answer alike.

    conformance.py URL              TAP: each statement's answer against conformance.expected
    conformance.py --record URL     writes conformance.expected from what a real CrateDB answers

What is compared: HTTP status, error code and the error's class, columns, rows (sorted, unless the
statement orders them), rowcount, and per row of a bulk request its rowcount and error code.
"""

import http.client
import json
import os
import sys
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
EXPECTED = os.path.join(HERE, 'conformance.expected')
SCHEMA = 'cs_conformance'

BIG = 'x' * 32767
UP = ('INSERT INTO "S"."u" ("id","a","n") (SELECT u.c0,u.c1,u.c2 FROM UNNEST(?::ARRAY(BIGINT),'
      '?::ARRAY(TEXT),?::ARRAY(INTEGER)) AS u(c0,c1,c2)) ON CONFLICT ("id") DO UPDATE SET '
      '"a"=excluded."a","n"=excluded."n"')
BULK = 'INSERT INTO S.u (id,a) VALUES (?,?) ON CONFLICT (id) DO UPDATE SET a=excluded.a'
FENCE = ('INSERT INTO S.fence (id, epoch) VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET epoch = '
         'epoch + 1 RETURNING epoch')
FENCED = ('/* marker */ INSERT INTO "S"."v" ("Id","k2","a b") (SELECT u.c0,u.c1,u.c2 FROM UNNEST('
          '?::ARRAY(BIGINT),?::ARRAY(TEXT),?::ARRAY(TEXT)) AS u(c0,c1,c2) WHERE (SELECT epoch FROM '
          'S.fence WHERE id = ?) = ?) ON CONFLICT ("Id","k2") DO UPDATE SET "a b" = excluded."a b"')
JOINED = ('SELECT u.i,t._primary_term FROM "S"."v" AS t JOIN UNNEST(?::ARRAY(BIGINT),'
          '?::ARRAY(TEXT),?::ARRAY(INTEGER)) AS u (k0,k1,i) ON t."Id" = u.k0 AND t.k2 = u.k1 WHERE '
          't."Id" = ANY(?::ARRAY(BIGINT)) AND t.k2 = ANY(?::ARRAY(TEXT))')
DEL = 'DELETE FROM S.u WHERE id=? AND _seq_no=? AND _primary_term=?'


def col(ctype, column, value='u.c1'):
    """an upsert of one column beside the key"""
    return ('INSERT INTO S.w (id,%s) (SELECT u.c0,%s FROM UNNEST(?::ARRAY(BIGINT),?::ARRAY(%s)) AS '
            'u(c0,c1)) ON CONFLICT (id) DO UPDATE SET %s=excluded.%s'
            % (column, value, ctype, column, column))


def args(*a):
    return {'args': list(a)}


def bulk(*rows):
    return {'bulk_args': [list(r) for r in rows]}


def put(ctype, column, values, value='u.c1'):
    return [(col(ctype, column, value), args(list(range(1, len(values) + 1)), list(values))),
            ('SELECT id, %s FROM S.w WHERE id IN (1,2,3)' % column, {}),
            ('DELETE FROM S.w WHERE id = ?', bulk([1], [2], [3]))]


# a list of cases is run on one connection
GROUPS = [
    # the HTTP side
    [('SELECT 1', {}),
     ('SELECT 1', {'foo': 1}),
     ('SELECT 1', {'args': [], 'bulk_args': []}),
     ('SELECT 1;', {}),
     ('SELECT 1; SELECT 2', {}),
     ('/* c */ SELECT 1 -- d', {}),
     ('selec 1', {}),
     ('SELECT ?', args()),
     ('SELECT ?', args(1, 2)),
     (None, '{"stmt":'), (None, '{}'), (None, ''), (None, '[]'),
     (None, '{"stmt":"SELECT ?","args":[{"a":1,"a":2}]}'),
     (None, '{"stmt":"SELECT ?","args":[NaN]}'),
     (None, '{"stmt":"SELECT 1","args":{}}'),
     ('x' * 262145, {}),
     ('SELECT \'%s\'' % ('y' * 262100), {}),
     ('SELECT count(*) FROM sys.nodes', {}),
     ('SELECT count(*) FROM sys.cluster', {}),
     ('SELECT nope FROM sys.cluster', {}),
     ('SELECT count(*) FROM sys.nope', {}),
     ('SELECT count(*) FROM sys.jobs WHERE stmt LIKE \'%marker-7%\' AND stmt NOT LIKE \'%x\'', {}),
     ('/* marker-7 */ SELECT count(*) FROM sys.jobs WHERE stmt LIKE ?', args('/* marker-7 */%')),
     ('SET statement_timeout = \'20s\'', {}),
     ('SET insert_select_fail_fast = true', {}),
     ('SHOW insert_select_fail_fast', {}),
     ('SET SESSION search_path TO S', {}),
     ],
    # tables
    [('CREATE TABLE S.u (id BIGINT PRIMARY KEY, a TEXT, n INTEGER, v VARCHAR(5)) CLUSTERED INTO 1 '
      'SHARDS WITH (number_of_replicas = \'0-1\', refresh_interval = 0)', {}),
     ('CREATE TABLE IF NOT EXISTS S.u (id BIGINT PRIMARY KEY)', {}),
     ('CREATE TABLE S.u (id BIGINT PRIMARY KEY)', {}),
     ('CREATE TABLE S.fence (id TEXT PRIMARY KEY, epoch BIGINT, token TEXT)', {}),
     ('CREATE TABLE S.v ("Id" BIGINT, k2 TEXT, "a b" TEXT, PRIMARY KEY ("Id",k2)) CLUSTERED INTO 1 '
      'SHARDS WITH (refresh_interval = 0)', {}),
     ('CREATE TABLE S.w (id BIGINT PRIMARY KEY, b BOOLEAN, s SMALLINT, i INTEGER, l BIGINT, r REAL,'
      ' d DOUBLE PRECISION, n NUMERIC(6,2), t TEXT, tl TEXT INDEX OFF STORAGE WITH (columnstore = '
      'false), v VARCHAR(5), ch CHARACTER(3), tz TIMESTAMP WITH TIME ZONE, ts TIMESTAMP WITHOUT TIME '
      'ZONE, u UUID, ip IP, o OBJECT(IGNORED), od OBJECT(DYNAMIC), al ARRAY(BIGINT), ad ARRAY(DOUBLE '
      'PRECISION), at ARRAY(TEXT), aa ARRAY(ARRAY(BIGINT)), ao ARRAY(OBJECT(IGNORED)), fv '
      'FLOAT_VECTOR(2), gp GEO_POINT) CLUSTERED BY (id) INTO 1 SHARDS WITH (number_of_replicas = 0, '
      'refresh_interval = 0, column_policy = \'strict\')', {}),
     ('CREATE TABLE S.z (id BIGINT PRIMARY KEY, d DATE)', {}),
     ('CREATE TABLE S.z (id BIGINT PRIMARY KEY, n NUMERIC)', {}),
     ('CREATE TABLE S.z (id OBJECT PRIMARY KEY)', {}),
     ('CREATE TABLE S.z (id ARRAY(TEXT) PRIMARY KEY)', {}),
     ('CREATE TABLE S.z (id GEO_POINT PRIMARY KEY)', {}),
     ('CREATE TABLE S.z (id BIGINT PRIMARY KEY, "a.b" TEXT)', {}),
     ('CREATE TABLE S.z (id BIGINT PRIMARY KEY, "a[b" TEXT)', {}),
     ('CREATE TABLE S.z (id BIGINT PRIMARY KEY, "_id" TEXT)', {}),
     ('CREATE TABLE S.z (id BIGINT PRIMARY KEY, "_seq_no" TEXT)', {}),
     ('CREATE TABLE S.z (id BIGINT PRIMARY KEY, id TEXT)', {}),
     ('CREATE TABLE S.z (id BIGINT PRIMARY KEY, t TIME)', {}),
     ('CREATE TABLE S.z (id BIGINT PRIMARY KEY, t NOSUCH)', {}),
     ('CREATE TABLE S.z (id BIGINT, PRIMARY KEY (nope))', {}),
     ('CREATE TABLE sys.z (id BIGINT PRIMARY KEY)', {}),
     ('CREATE TABLE "S"."a b" (id BIGINT PRIMARY KEY)', {}),
     ('CREATE TABLE "S"."a/b" (id BIGINT PRIMARY KEY)', {}),
     ('CREATE TABLE S.z (id BIGINT PRIMARY KEY) WITH (nonsense = 1)', {}),
     ('SELECT table_name, number_of_shards, number_of_replicas, clustered_by, column_policy FROM '
      'information_schema.tables WHERE table_schema = ? ORDER BY 1', args('S')),
     ('SELECT column_name, data_type, ordinal_position, is_nullable FROM information_schema.columns '
      'WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position', args('S', 'w')),
     ('SELECT column_name, numeric_precision, numeric_scale, character_maximum_length FROM '
      'information_schema.columns WHERE table_schema = ? AND table_name = ? AND column_name IN '
      '(\'n\', \'v\', \'t\') ORDER BY column_name', args('S', 'w')),
     ('SELECT table_name, column_name, ordinal_position FROM information_schema.key_column_usage WHERE '
      'table_schema = ? ORDER BY table_name, ordinal_position', args('S')),
     ('SELECT count(*) FROM information_schema.tables WHERE table_schema = \'S\' AND table_name = '
      '\'nope\'', {}),
     ('ALTER TABLE S.u ADD COLUMN z BIGINT', {}),
     ('ALTER TABLE S.u ADD COLUMN z BIGINT', {}),
     ('ALTER TABLE S.u ADD COLUMN y BIGINT DEFAULT 3', {}),
     ('ALTER TABLE S.u ADD COLUMN "p q" TEXT', {}),
     ('ALTER TABLE S.nope ADD COLUMN z BIGINT', {}),
     ('ALTER TABLE S.u DROP COLUMN z', {}),
     ('ALTER TABLE S.u DROP COLUMN id', {}),
     ('DROP TABLE S.nope', {}),
     ('DROP TABLE IF EXISTS S.nope', {}),
     ('SELECT * FROM S.nope', {}),
     ('SELECT * FROM cs_nosuchschema.nope', {}),
     ('SELECT nope FROM S.u', {}),
     ('REFRESH TABLE S.nope', {}),
     ('REFRESH TABLE S.u, S.fence', {}),
     ],
    # upserts by UNNEST
    [(UP, args([1, 2, 3], ['a', 'b', 'c'], [1, 2, 3])),
     ('SELECT * FROM S.u', {}),
     ('SELECT count(*) FROM S.u', {}),
     ('SELECT id, a FROM S.u WHERE id = 2', {}),
     ('SELECT id, a FROM S.u WHERE id = ?', args(2)),
     ('SELECT id, a FROM S.u WHERE id IN (1,2)', {}),
     ('SELECT id, a FROM S.u WHERE id IN (?)', args(1)),
     ('SELECT id, a FROM S.u WHERE id IN (?,?)', args(1, 2)),
     ('SELECT id, a FROM S.u WHERE id = ANY(?)', args([1, 2])),
     ('SELECT id, a FROM S.u WHERE id = ANY([1,2])', {}),
     ('SELECT id FROM S.u WHERE id = 1 OR id = 2', {}),
     ('SELECT id FROM S.u WHERE id = 1 AND a = \'a\'', {}),
     ('SELECT id FROM S.u WHERE id = 1 AND a = \'b\'', {}),
     ('SELECT id FROM S.u WHERE id = ? OR a = \'a\'', args(1)),
     ('SELECT id FROM S.u WHERE id > 0', {}),
     ('SELECT id FROM S.u WHERE a = \'a\'', {}),
     ('SELECT id, _seq_no, _primary_term FROM S.u WHERE id IN (1,2,3) ORDER BY id', {}),
     ('REFRESH TABLE S.u', {}),
     ('SELECT id, a, n FROM S.u ORDER BY id', {}),
     ('SELECT id FROM S.u WHERE id > 1 ORDER BY id DESC LIMIT 1', {}),
     ('SELECT id FROM S.u WHERE id > ? ORDER BY id LIMIT 1 OFFSET 1', args(1)),
     ('SELECT count(*), a FROM S.u GROUP BY a ORDER BY a', {}),
     ('SELECT avg(n), sum(n), min(n), max(n), count(n) FROM S.u', {}),
     ('SELECT id, nope FROM S.u WHERE id = 1', {}),
     ('SELECT id, count(*) FROM S.u', {}),
     # overwriting, and what of it is seen
     (UP, args([1], ['new'], [9])),
     ('SELECT a FROM S.u WHERE id = 1', {}),
     ('SELECT a FROM S.u WHERE a = \'a\'', {}),
     ('SELECT a FROM S.u WHERE a = \'new\'', {}),
     ('REFRESH TABLE S.u', {}),
     ('SELECT a FROM S.u WHERE a = \'new\'', {}),
     # bad ones
     (UP, args([4, 5, 6], ['a', BIG, 'c'], [1, 2, 3])),
     ('SELECT id FROM S.u WHERE id IN (4,5,6)', {}),
     (UP, args([4, 5, 6], ['a', 'b', 'c'], [1, 'zz', 3])),
     (UP, args([4, 5, 6], ['a', 'b', 'c'], [1, 3000000000, 3])),
     (UP, args([4, 5, 6], ['a', 'b', 'c'], [1, 2.7, '3'])),
     ('SELECT id, n FROM S.u WHERE id IN (4,5,6)', {}),
     (UP, args([4, 5, 6], ['a', 'b', {'x': 1}], [1, 2, 3])),
     (UP, args([4, 5, 6], ['a', 'b', 5], [1, True, 3])),
     (UP, args([4, 5, 6], ['a', 'b', [1]], [1, 2, 3])),
     (UP, args([4, 5, None], ['a', 'b', 'c'], [1, 2, 3])),
     (UP, args([7, 7], ['a', 'b'], [1, 2])),
     ('SELECT a, n FROM S.u WHERE id = 7', {}),
     (UP, args([8, 9], ['a'], [1, 2])),
     ('SELECT id, a, n FROM S.u WHERE id IN (8,9)', {}),
     (UP, args([], [], [])),
     (UP, args([1], ['a'])),
     (UP, args(1, 'a', 2)),
     (UP.replace('"n")', '"nope")', 1), args([1], ['a'], [1])),
     (UP.replace('"S"."u" (', '"S"."nope" (', 1), args([1], ['a'], [1])),
     (UP.replace('ON CONFLICT ("id")', 'ON CONFLICT ("id","a")'), args([1], ['a'], [1])),
     (UP.replace('SET "a"', 'SET "id"=excluded."id","a"'), args([1], ['a'], [1])),
     (UP + ' WHERE 1 = 1', args([1], ['a'], [1])),
     (UP[:UP.index(' ON CONFLICT')] + ' ON CONFLICT ("id") DO NOTHING',
      args([1, 70], ['never', 'x'], [1, 1])),
     ('SELECT id, a FROM S.u WHERE id IN (1,70)', {}),
     (UP[:UP.index(' ON CONFLICT')], args([1, 71], ['never', 'x'], [1, 1])),
     ('SELECT id, a FROM S.u WHERE id IN (1,71)', {}),
     (UP, bulk([[1], ['a'], [1]])),
     (col('TEXT', 'v').replace('S.w', 'S.u'), args([20, 21], ['0123456789', 'ok'])),
     ('SELECT id, v FROM S.u WHERE id IN (20,21)', {}),
     ],
    # the same with fail fast, which is this connection's alone
    [('SET insert_select_fail_fast = true', {}),
     (UP, args([30], [BIG], [1])),
     (UP, args([30], ['fine'], [1])),
     (UP, args([None], ['c'], [1])),
     (col('TEXT', 'v').replace('S.w', 'S.u'), args([31], ['0123456789'])),
     (UP[:UP.index(' ON CONFLICT')], args([30], ['again'], [1])),
     (FENCED, args([1], ['x'], ['y'], 'no such', 1)),
     ],
    [(UP, args([32], [BIG], [1]))],
    # bulk
    [(BULK, bulk([1, 'x'], [40, BIG], [41, 'y'])),
     (BULK, bulk(*[[100 + i, BIG] for i in range(15)])),
     (BULK, bulk([1, 'x'], ['zz', 'b'])),
     (BULK, bulk([1, 'x'], [None, 'b'])),
     (BULK, bulk([1, 'x'], [2])),
     (BULK, bulk()),
     (BULK, {'args': [1, 'x'], 'bulk_args': [[1, 'x']]}),
     (BULK, args(42, 'one')),
     (BULK, args(42, BIG)),
     ('INSERT INTO S.u (id, a) VALUES (?, ?)', args(42, 'two')),
     ('INSERT INTO S.u (id, a) VALUES (?, ?)', bulk([42, 'two'], [43, 'three'])),
     ('INSERT INTO S.u (id, a) VALUES (?, ?) ON CONFLICT (id) DO NOTHING', bulk([42, 'n'], [44, 'f'])),
     ('INSERT INTO S.u (id, nope) VALUES (?, ?)', args(1, 1)),
     ('INSERT INTO S.u (a) VALUES (?)', args(1)),
     ('INSERT INTO S.u (id, a) VALUES (50, \'p\'), (51, \'q\')', {}),
     ('SELECT id, a FROM S.u WHERE id IN (42,43,44,50,51)', {}),
     ],
    [('SELECT id FROM S.u', bulk([1]))],      # what follows on that connection may fail oddly
    [('SELECT 1', bulk([]))],
    # deletes
    [('DELETE FROM S.u WHERE id = ?', bulk([42], [999])),
     ('DELETE FROM S.u WHERE id = ?', args(43)),
     ('DELETE FROM S.u WHERE id = ?', args(999)),
     ('DELETE FROM S.u WHERE id = ?', bulk(*[[3000 + i] for i in range(15)])),
     ('DELETE FROM S.u WHERE id = ?', bulk(['zz'])),
     ('DELETE FROM S.u WHERE id = ?', bulk(['44'])),
     ('INSERT INTO S.u (id, a) VALUES (60, \'p\'), (61, \'q\')', {}),
     ('DELETE FROM S.u WHERE id = 60 AND a = \'p\'', {}),
     ('DELETE FROM S.u WHERE id IN (?, ?)', args(60, 61)),
     ('DELETE FROM S.u WHERE a = ?', args('p')),
     ('SELECT id FROM S.u WHERE id IN (60,61)', {}),
     ('REFRESH TABLE S.u', {}),
     ('DELETE FROM S.u WHERE a = ?', args('p')),
     ('SELECT id FROM S.u WHERE id IN (60,61)', {}),
     (DEL, bulk([61, 0, 1], [999, 0, 1])),
     (DEL, bulk(*[[3000 + i, 0, 1] for i in range(15)])),
     (DEL, bulk(['zz', 0, 1])),
     # one that is too late
     (DEL + ' AND CURRENT_TIMESTAMP < 1000::TIMESTAMP WITH TIME ZONE', bulk([61, 999, 1], [999, 0, 1])),
     (DEL + ' AND CURRENT_TIMESTAMP < 9000000000000::TIMESTAMP WITH TIME ZONE', bulk([61, 999, 1], [999, 0, 1])),
     ('SELECT t.id,(SELECT count(*) FROM sys.cluster) AS e,CURRENT_TIMESTAMP > 1000 AS c FROM S.u AS t WHERE t.id IN (61,999)', {}),
     ('DELETE FROM S.u WHERE id = ? AND _seq_no = ?', bulk([1, 1])),
     ('DELETE FROM S.u WHERE _seq_no = ? AND _primary_term = ?', bulk([1, 1])),
     ('DELETE FROM S.u WHERE nope = ?', bulk([1])),
     ('DELETE FROM S.nope WHERE id = ?', bulk([1])),
     ('SEQ', 61),                   # looks up _seq_no and deletes by it, see run()
     ('SEQ', 61),
     ('SELECT id FROM S.u WHERE id = 61', {}),
     ('SEQ-LATE', 62),              # the row was written again in between
     ('SELECT id, a FROM S.u WHERE id = 62', {}),
     ('UPDATE S.u SET a = ? WHERE id = ?', args('upd', 62)),
     ('UPDATE S.u SET a = ? WHERE id = ?', args('upd', 999)),
     ('UPDATE S.u SET a = ? WHERE id = ? AND a = \'upd\'', args('upd2', 62)),
     ('UPDATE S.u SET id = ? WHERE id = ?', args(1, 62)),
     ('DELETE FROM S.u', {}),
     ('REFRESH TABLE S.u', {}),
     ('DELETE FROM S.u', {}),
     ('REFRESH TABLE S.u', {}),
     ('SELECT count(*) FROM S.u', {}),
     ],
    # the fence
    [(FENCE, args('a')), (FENCE, args('a')), (FENCE, args('b')),
     ('SELECT epoch FROM S.fence WHERE id = ?', args('a')),
     ('SELECT epoch FROM S.fence WHERE id = \'zz\'', {}),
     ('SELECT id, epoch FROM S.fence WHERE id IN (\'a\',\'b\') ORDER BY id', {}),
     ('INSERT INTO S.fence (id, epoch, token) VALUES (?, 1, ?) ON CONFLICT (id) DO UPDATE SET epoch = '
      'fence.epoch + 1 RETURNING epoch', args('a', 't')),
     ('INSERT INTO S.fence (id, epoch, token) VALUES (?, 1, ?) ON CONFLICT (id) DO UPDATE SET epoch = '
      'epoch + 1, token = excluded.token RETURNING epoch AS e, *', args('a', 't')),
     ('UPDATE S.fence SET token = ? WHERE id = ? RETURNING epoch, token', args('x', 'a')),
     ('INSERT INTO S.fence (id, epoch) VALUES (?, CURRENT_TIMESTAMP::BIGINT) ON CONFLICT (id) DO UPDATE SET epoch '
      '= greatest(epoch + 1, excluded.epoch) RETURNING epoch > 1700000000000 AS e', args('clock')),
     ('INSERT INTO S.fence (id, epoch) VALUES (?, 9000000000000)', args('clock#2')),
     ('INSERT INTO S.fence (id, epoch) VALUES (?, CURRENT_TIMESTAMP::BIGINT) ON CONFLICT (id) DO UPDATE SET epoch '
      '= greatest(epoch + 1, excluded.epoch) RETURNING epoch AS e', args('clock#2')),
     ('REFRESH TABLE S.fence', {}),
     ('SELECT id FROM S.fence WHERE id >= ? AND id < ?', args('clock#', 'clock$')),
     ('DELETE FROM S.fence WHERE id >= ? AND id < ?', args('clock#', 'clock$')),
     ('DELETE FROM S.fence WHERE id = ?', args('clock')),
     ('DELETE FROM S.fence WHERE id = ?', args('clock')),
     ('/* marker */ SELECT t.id,(SELECT epoch FROM S.fence WHERE id = ?) AS e FROM S.fence AS t WHERE t.id IN (\'a\',\'zz\')', args('b')),
     ('SELECT t.id,(SELECT epoch FROM S.fence WHERE id = ?) AS e FROM S.fence AS t WHERE t.id IN (\'b\')', args('zz')),
     (FENCED, args([1, 2], ['x', 'y'], ['p', 'q'], 'b', 1)),
     (FENCED, args([1, 2], ['x', 'y'], ['P', 'Q'], 'b', 2)),
     (FENCED, args([1, 2], ['x', 'y'], ['P', 'Q'], 'zz', 1)),
     (FENCED, args([3, 4], ['x', 'y'], [BIG, 'q'], 'b', 1)),
     ('SELECT "Id", k2, "a b" FROM S.v WHERE ("Id" = 1 AND k2 = \'x\') OR ("Id" = 2 AND k2 = \'y\')', {}),
     ('SELECT "Id", k2 FROM S.v WHERE "Id" IN (1,2) AND k2 IN (\'x\',\'y\')', {}),
     ('SELECT "Id", k2 FROM S.v WHERE "Id" IN (?,?) AND k2 IN (?,?)', args(1, 2, 'x', 'y')),
     ('SELECT "Id", k2 FROM S.v WHERE "Id" = 1', {}),
     ('INSERT INTO S.v ("Id",k2) VALUES (1,\'a\') ON CONFLICT ("Id") DO NOTHING', {}),
     ('INSERT INTO S.v ("Id",k2) VALUES (1,\'a\') ON CONFLICT ("Id",k2) DO UPDATE SET k2=excluded.k2', {}),
     ('INSERT INTO S.v ("Id") VALUES (1)', {}),
     ('INSERT INTO S.v (id,k2) VALUES (1,\'a\')', {}),
     ('DELETE FROM S.v WHERE "Id"=? AND k2=?', bulk([1, 'x'], [1, 'nope'])),
     ('REFRESH TABLE "S"."v"', {}),
     ('SELECT "Id", k2, "a b" FROM S.v WHERE "Id" > 1 OR ("Id" = 1 AND k2 > \'a\') ORDER BY "Id", k2 '
      'LIMIT 2', {}),
     ('SELECT "Id" FROM S.v WHERE ("Id",k2) > (1,\'a\')', {}),
     (FENCED, args([5, 6, 7], ['x', 'y', 'z'], ['p', 'q', 'r'], 'b', 1)),
     (JOINED, args([5, 6, 9], ['x', 'y', 'z'], [0, 1, 2], [5, 6, 9], ['x', 'y', 'z'])),
     ('REFRESH TABLE S.v', {}),
     (JOINED, args([5, 6, 9], ['x', 'y', 'z'], [0, 1, 2], [5, 6, 9], ['x', 'y', 'z'])),
     ('SELECT "Id" FROM "S"."v" WHERE "Id" >= ?::BIGINT AND (("Id" > ?::BIGINT) OR ("Id" = ?::BIGINT AND '
      'k2 > ?::TEXT)) ORDER BY "Id", k2 LIMIT 2', args(5, 5, 5, 'x')),
     ('SELECT substr(stmt, 1, 10) FROM sys.jobs WHERE stmt LIKE ? OR stmt LIKE ?',
      args('/* nobody %', 'SELECT substr(stmt, 1, 10)%')),
     ('SELECT state, type, grantee FROM sys.privileges WHERE class = \'TABLE\' AND ident = ?',
      args('S.v')),
     ('SELECT table_type FROM information_schema.tables WHERE table_schema = ? AND table_name = ?',
      args('S', 'v')),
     ('SELECT column_name, is_nullable, column_default, is_generated FROM information_schema.columns '
      'WHERE table_schema = ? AND table_name = ? ORDER BY 1', args('S', 'v')),
     ],
    # values
    put('BOOLEAN', 'b', [True, None, 'f']) + put('BOOLEAN', 'b', ['maybe'])
    + put('SMALLINT', 's', [32767, -32768]) + put('SMALLINT', 's', [32768])
    + put('BIGINT', 'l', [9223372036854775807, -9223372036854775808, '7'])
    + put('BIGINT', 'l', [9223372036854775808])
    + put('REAL', 'r', [1.1, 'NaN', '-Infinity']) + put('DOUBLE PRECISION', 'd', [0.1, 1e300, 'Infinity'])
    + put('DOUBLE PRECISION', 'd', [1, '2.5', 'NaN'])
    + put('NUMERIC(6,2)', 'n', ['1234.567', '-0.005', None]) + put('NUMERIC(6,2)', 'n', ['123456.7'])
    + put('NUMERIC(6,2)', 'n', ['NaN']) + put('NUMERIC(6,2)', 'n', [12.5])
    + put('TEXT', 't', ['\u00e9\n"\\\u0001\U0001F600', '', 1.5])
    + put('TEXT', 't', ['\u00e9' * 16384, '\u00e9' * 16383])
    + [x for x in put('TEXT', 'tl', ['y' * 40000]) if 'SELECT id' not in x[0]]
    + put('TEXT', 'ch', ['ab']) + put('TEXT', 'ch', ['abcd'])
    + put('TIMESTAMP WITH TIME ZONE', 'tz', [1, 1.5, '2020-01-01T00:00:00Z'])
    + put('TIMESTAMP WITH TIME ZONE', 'tz', ['2020-01-01 12:30:00.123456+02', '+12020-01-01T00:00:00Z', -1])
    + put('TIMESTAMP WITH TIME ZONE', 'tz', ['infinity']) + put('TIMESTAMP WITH TIME ZONE', 'tz', ['soon'])
    + put('TIMESTAMP WITHOUT TIME ZONE', 'ts', ['2020-01-01T00:00:00', 253402300800000])
    + put('UUID', 'u', ['A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11']) + put('UUID', 'u', ['zz'])
    + put('IP', 'ip', ['10.0.0.1', '::1']) + put('IP', 'ip', ['10.0.0.0/8'])
    + put('GEO_POINT', 'gp', [[200, 1]]),
    # objects and arrays: members have one type in all of a request
    put('OBJECT', 'o', [{'k': 1}, {'k': 2.5}, None]) + put('OBJECT', 'o', [{'k': 1}, {'k': 's'}])
    + put('OBJECT', 'o', [{'k': 's'}, {'k': 1}]) + put('OBJECT', 'o', [{'k': 1}, {'k': [1]}])
    + put('OBJECT', 'o', [{'k': {'a': 1}}, {'k': 's'}]) + put('OBJECT', 'o', ['str'])
    + put('OBJECT', 'o', [{'k': [1, 'a']}]) + put('OBJECT(IGNORED)', 'o', [{'k': 1}, {'k': 's'}])
    + put('OBJECT(IGNORED)', 'o', [{'a.b': 1, 'c': None}, {}])
    + put('TEXT', 'o', ['{"k":1}', '{"k":"s","z":{"y":[1,"2"]}}', None])
    + put('TEXT', 'o', ['{"k":1}', '{"k":"s"}'], 'u.c1::OBJECT(IGNORED)')
    + put('TEXT', 'o', ['{"k":1}', 'nonsense']) + put('TEXT', 'o', ['{"k":1}', '[1]'])
    + put('TEXT', 'o', ['{"k":1}', 'nonsense'], 'u.c1::OBJECT(IGNORED)')
    + put('OBJECT', 'od', [{'k': 1}, {'k': 2}]) + put('OBJECT', 'od', [{'k': 'str'}, {'k': 'x'}])
    + put('OBJECT', 'od', [{'a.b': 1}, {'c': 1}])
    + put('TEXT', 'od', ['{"p":1}', '{"p":2.5}', '{}', None], '(u.c1::OBJECT(IGNORED))')
    + put('TEXT', 'od', ['{"p":"text"}', '{"r":1}'], '(u.c1::OBJECT(IGNORED))')
    + put('TEXT', 'o', ['{"p":1}', '{"p":1.5}', '{"p":"s"}', '{"p":[1,"s",{"q":null}]}'], '(u.c1::OBJECT(IGNORED))')
    + put('TEXT', 'ao', ['{"v":[{"k":1},{"k":"s"}]}', '{"v":[]}', None], '(u.c1::OBJECT(IGNORED))[\'v\']')
    + put('OBJECT', 'al', [{'v': [1, 2]}, {'v': None}, None], 'u.c1[\'v\']')
    + put('OBJECT', 'al', [{'v': []}, {'v': [None]}, {'v': [3000000000]}], 'u.c1[\'v\']')
    + put('OBJECT', 'ad', [{'v': [1]}, {'v': ['NaN']}], 'u.c1[\'v\']')
    + put('OBJECT', 'ad', [{'v': ['NaN']}, {'v': [2.5]}], 'u.c1[\'v\']')
    + put('OBJECT', 'ad', [{'v': [1]}, {'v': [2.5]}], 'u.c1[\'v\']')
    + put('OBJECT', 'al', [{'v': ['x']}, {'v': ['y']}], 'u.c1[\'v\']')
    + put('OBJECT', 'at', [{'v': ['a', None]}, {'v': ['1']}], 'u.c1[\'v\']')
    + put('OBJECT', 'aa', [{'v': [[1, 2], [3]]}], 'u.c1[\'v\']')
    + put('OBJECT', 'fv', [{'v': [1.5, 2]}, {'v': [1, 2, 3]}], 'u.c1[\'v\']')
    + put('OBJECT', 'fv', [{'v': 1}], 'u.c1') + put('ARRAY(BIGINT)', 'al', [[1, 2], [3]])
    + put('TEXT', 'ad', ['{"v":[1]}', '{"v":["NaN",null]}', '{}'], '(u.c1::OBJECT(IGNORED))[\'v\']')
    + put('TEXT', 'ao', ['{"v":[{"k":1}]}', '{"v":[{"k":"s"}]}'], '(u.c1::OBJECT(IGNORED))[\'v\']')
    + put('TEXT', 'aa', ['{"v":[[1],[2,3]]}'], '(u.c1::OBJECT(IGNORED))[\'v\']')
    + put('TEXT', 'al', ['{"v":["x"]}', '{"v":[2]}'], '(u.c1::OBJECT(IGNORED))[\'v\']')
    + put('TEXT', 'al', ['{"v":[1]}'], '(u.c1::OBJECT)[\'v\']')
    + put('TEXT', 'fv', ['{"v":[1.5,2]}', '{"v":[1]}'], '(u.c1::OBJECT(IGNORED))[\'v\']')
    + put('TEXT', 'at', ['{"v":["%s"]}' % BIG, '{"v":["b"]}'], '(u.c1::OBJECT(IGNORED))[\'v\']'),
    # blocks
    [('ALTER TABLE S.u SET ("blocks.write" = true)', {}),
     (UP, args([1], ['a'], [1])), (BULK, bulk([1, 'a'])), (BULK, args(1, 'a')),
     ('DELETE FROM S.u WHERE id = ?', bulk([1])),
     ('ALTER TABLE S.u SET ("blocks.write" = false)', {}),
     (BULK, args(1, 'a')),
     ('ALTER TABLE S.u SET ("blocks.read_only_allow_delete" = true)', {}),
     (UP, args([1], ['a'], [1])), (BULK, bulk([1, 'a'])), (BULK, args(1, 'a')),
     ('DELETE FROM S.u WHERE id = ?', bulk([1])),
     ('SELECT id FROM S.u WHERE id = 1', {}),
     ('SET insert_select_fail_fast = true', {}),
     (UP, args([1], ['a'], [1])),
     ('ALTER TABLE S.u SET ("blocks.read_only_allow_delete" = false)', {}),
     (UP, args([1], ['a'], [1])),
     ],
    # swap and drop
    [('CREATE TABLE S.new (id BIGINT PRIMARY KEY, other TEXT)', {}),
     ('INSERT INTO S.new (id, other) VALUES (5, \'five\')', {}),
     ('ALTER CLUSTER SWAP TABLE "S"."new" TO "S"."u" WITH (drop_source = true)', {}),
     ('SELECT * FROM S.u WHERE id = 5', {}),
     ('SELECT * FROM S.new', {}),
     ('ALTER CLUSTER SWAP TABLE "S"."new" TO "S"."u" WITH (drop_source = true)', {}),
     ('CREATE TABLE S."Weird-Name_1" ("select" BIGINT PRIMARY KEY, "quo""te" TEXT)', {}),
     ('INSERT INTO S."Weird-Name_1" ("select", "quo""te") (SELECT u.c0,u.c1 FROM UNNEST('
      '?::ARRAY(BIGINT),?::ARRAY(TEXT)) AS u(c0,c1)) ON CONFLICT ("select") DO UPDATE SET "quo""te" = '
      'excluded."quo""te"', args([1], ['it\'s'])),
     ('SELECT "quo""te" FROM S."Weird-Name_1" WHERE "select" = 1', {}),
     ('ALTER TABLE S."Weird-Name_1" RENAME TO "weird2"', {}),
     ('SELECT "quo""te" FROM S.weird2 WHERE "select" = 1', {}),
     ('DROP TABLE S."Weird-Name_1"', {}),
     ('DROP TABLE S.weird2', {}),
     ('DROP TABLE S.u', {}),
     ('SELECT count(*) FROM information_schema.tables WHERE table_schema = \'S\'', {}),
     ],
]


class Connection:
    def __init__(self, url):
        u = urllib.parse.urlsplit(url)
        self.headers = {'Content-Type': 'application/json'}
        if u.username:
            import base64
            self.headers['Authorization'] = 'Basic ' + base64.b64encode(
                ('%s:%s' % (u.username, u.password or '')).encode()).decode()
        cls = http.client.HTTPSConnection if u.scheme == 'https' else http.client.HTTPConnection
        self.http = cls(u.hostname, u.port or 4200, timeout=60)

    def post(self, body, method='POST', path='/_sql'):
        self.http.request(method, path, body.encode(), self.headers)
        r = self.http.getresponse()
        return r.status, r.read().decode()

    def ask(self, stmt, extra):
        return self.post(json.dumps(dict(extra, stmt=stmt)))


def named(x):
    """S is the schema of the test"""
    if isinstance(x, str):
        return SCHEMA if x == 'S' else x
    if isinstance(x, list):
        return [named(y) for y in x] if len(x) < 100 else x
    return {k: named(v) for k, v in x.items()} if isinstance(x, dict) else x


def statement(stmt):
    return stmt.replace('S.', SCHEMA + '.').replace('"S"', '"%s"' % SCHEMA).replace(
        "'S'", "'%s'" % SCHEMA).replace(' TO S', ' TO ' + SCHEMA)


def observe(stmt, status, text):
    """what is compared"""
    try:
        msg = json.loads(text)
    except ValueError:
        return {'status': status, 'text': text[:100]}
    seen = {'status': status}
    if 'error' in msg:
        seen['code'] = msg['error']['code']
        seen['class'] = msg['error']['message'].split('[')[0]
        return seen
    for k in ('cols', 'rows', 'rowcount'):
        if k in msg:
            seen[k] = msg[k]
    if 'rows' in seen and 'ORDER BY' not in stmt:
        seen['rows'] = sorted(seen['rows'], key=lambda r: json.dumps(r))
    if seen.get('cols') == [] and seen.get('rows') == [[]]:
        del seen['cols'], seen['rows']
    for k in ('cols', 'rows'):
        if k in seen and len(json.dumps(seen[k])) > 3000:
            seen[k] = 'long: %d' % len(json.dumps(seen[k]))
    if 'results' in msg:
        del seen['cols']
        seen['results'] = [[r['rowcount'], r['error']['code']] if 'error' in r else r['rowcount']
                           for r in msg['results']]
        if len(seen['results']) > 10:
            # which of many get words is the shards' affair: how many is not
            with_words = sum(1 for r in seen['results'] if isinstance(r, list))
            seen['results'] = '%d results, %d with an error' % (len(seen['results']), with_words)
    return seen


def delete_by_seq(conn, key, late):
    if late:
        conn.ask(statement(UP), args([key], ['old'], [1]))
    status, text = conn.ask(statement('SELECT _seq_no, _primary_term FROM S.u WHERE id = %d' % key), {})
    rows = json.loads(text)['rows']
    if late:
        conn.ask(statement(UP), args([key], ['newer'], [2]))
    seq, term = rows[0] if rows else (0, 1)
    return conn.ask(statement(DEL), bulk([key, seq, term]))


def run(url):
    for group in GROUPS:
        conn = Connection(url)
        for stmt, extra in group:
            if stmt is None:
                answer = conn.post(extra)
                label = extra
            elif stmt in ('SEQ', 'SEQ-LATE'):
                answer = delete_by_seq(conn, extra, stmt == 'SEQ-LATE')
                label = '%s %d' % (stmt, extra)
            else:
                answer = conn.ask(statement(stmt), named(extra))
                label = stmt
                if extra:
                    label += ' ' + json.dumps(extra, ensure_ascii=False)
            label = label.replace('\n', ' ')
            yield (label if len(label) <= 400 else label[:300] + '... (%d)' % len(label)), \
                observe(stmt or '', *answer)
    conn = Connection(url)
    for method, path in (('GET', '/_sql?nope'), ('POST', '/nope'), ('PUT', '/x')):
        status, _ = conn.post('{"stmt":"SELECT 1"}', method, path)
        yield '%s %s' % (method, path), {'status': status}
    status, text = conn.post('', 'GET', '/')
    yield 'GET /', {'status': status, 'keys': sorted(json.loads(text)),
                    'version': sorted(json.loads(text)['version'])}


def clean(url):
    conn = Connection(url)
    _, text = conn.ask("SELECT table_name FROM information_schema.tables WHERE table_schema = '%s'"
                       % SCHEMA, {})
    for (name,) in json.loads(text)['rows']:
        conn.ask('DROP TABLE "%s"."%s"' % (SCHEMA, name.replace('"', '""')), {})


def main():
    record = sys.argv[1:2] == ['--record']
    if len(sys.argv) != 2 + record:
        sys.exit(__doc__)
    url = sys.argv[-1]
    clean(url)
    try:
        if record:
            with open(EXPECTED, 'w') as f:
                for label, seen in run(url):
                    f.write(label + '\n\t' + json.dumps(seen, ensure_ascii=False) + '\n')
            return
        _, text = Connection(url).post('', 'GET', '/')
        version = json.loads(text)['version']['number']
        with open(EXPECTED) as f:
            lines = f.read().split('\n')
        expected = list(zip(lines[0::2], lines[1::2]))
        print('# %s, which says it is CrateDB %s' % (url.split('@')[-1], version))
        print('1..%d' % len(expected))
        # recorded from 6.4: another version's answers may differ and are only shown
        todo = '' if version.startswith('6.4.') else ' # TODO recorded from 6.4, this is ' + version
        n = failed = 0
        for (label, want), (got_label, got) in zip(expected, run(url)):
            n += 1
            ok = label == got_label and json.loads(want) == json.loads(json.dumps(got))
            failed += not ok
            print('%sok %d - %s%s' % ('' if ok else 'not ', n, got_label[:150].replace('#', '\\#'), todo))
            if not ok:
                if label != got_label:
                    print('# expected here: %s' % label)
                print('# expected %s\n#      got %s' % (want.strip(), json.dumps(got, ensure_ascii=False)))
        if n != len(expected):
            print('# %d expected, %d run' % (len(expected), n))
            failed += 1
        sys.exit(1 if failed and not todo else 0)
    finally:
        clean(url)


if __name__ == '__main__':
    main()
