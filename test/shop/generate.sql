-- Fills the shop of schema.sql, with the same rows every time:
--
--	psql -v rows=100000 -f generate.sql
--
-- rows: in customers, products and orders; order_items has 1.2 times as many,
-- categories 50.  No random(), no hash of PostgreSQL's, no clock, no setting of the session
-- has a part in it: mix() is all the chance there is.
-- With -v only=order_items only that table is filled.

\if :{?rows}
\else
	\set rows 100000
\endif
\if :{?only}
\else
	\set only all
\endif
SELECT :'only' = 'all' AS all_tables, :'only' IN ('all', 'order_items') AS items \gset

\encoding UTF8
BEGIN;
SET LOCAL TimeZone = 'UTC';

-- 0 <= mix(i, salt) < 2^31, scattered
CREATE FUNCTION pg_temp.mix(i bigint, salt int) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
	SELECT ((((i * 2654435761 + salt * 40503) % 4294967296) * 69069 + salt) % 4294967296) >> 1
$$;

-- one of the texts that break what is not quoted, escaped or encoded right
CREATE FUNCTION pg_temp.awkward(i bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
	SELECT (ARRAY[
		'O''Brien & Sons', 'say "cheese"', E'two\nlines', E'tab\there', E'back\\slash \\n \\u0041 \\',
		E'carriage\r\nreturn', 'größer, naïve, Łódź', '日本語のメモ', 'Ελληνικά', 'שלום עולם', 'مرحبا',
		'😀 emoji 👩‍👩‍👧‍👦 🇩🇪', E'e\u0301 combined', E'zero\u200Bwidth', E'\u0001\u001f\u007f control', E'\u2028 line separator',
		'{"json": [1, null, "x"]}', '$1 ? :name %s %d', '-- ; DROP TABLE orders; /*', '<b>&amp;</b>', '', ' ',
		'NULL', '\N', 'NaN', E'\U0001F468\u200D\U0001F4BB at work', '''''''', '""', '[', 'ꙮ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢'
		])[1 + i % 30]
$$;

\if :all_tables

INSERT INTO customers
SELECT i,
	   (ARRAY['Ada', 'Björn', 'Chloë', 'Dmitri', 'Élodie', 'Fatima', 'Grace', 'Hiroshi'])[1 + pg_temp.mix(i, 1) % 8]
	   || ' ' || CASE WHEN i % 50 = 0 THEN pg_temp.awkward(i / 50)
				 ELSE (ARRAY['Smith', 'Müller', 'O''Neil', 'García', 'Nguyễn', 'Kowalski', '佐藤', 'Ivanov'])[1 + pg_temp.mix(i, 2) % 8] END,
	   CASE WHEN i % 10 <> 3 THEN 'customer' || i || '@example.com' END,
	   CASE WHEN i % 7 <> 0 THEN (ARRAY['Wien', 'København', 'São Paulo', '東京', 'New York', 'Zürich'])[1 + pg_temp.mix(i, 3) % 6] END,
	   CASE WHEN i % 9 <> 0 THEN (pg_temp.mix(i, 4) % 2000000 - 1000000) / 7.0::float8 END,
	   timestamptz '1960-01-01 00:00:00.000001+00' + pg_temp.mix(i, 5) * interval '0.7 seconds',
	   timestamptz '2025-01-01 00:00:00+00' + i * interval '61.000777 seconds',
	   i % 97 = 0
FROM generate_series(1, :rows) AS g(i);

INSERT INTO categories
SELECT i, CASE WHEN i > 5 THEN 1 + i % 5 END,
	   CASE WHEN i % 5 = 0 THEN pg_temp.awkward(i) ELSE 'category ' || i END,
	   timestamptz '2025-01-01 00:00:00.123456+00' + i * interval '1 hour',
	   i = 50
FROM generate_series(1, 50) AS g(i);

INSERT INTO products
SELECT i, 1 + pg_temp.mix(i, 6) % 50, 'SKU-' || lpad(i::text, 8, '0'),
	   CASE WHEN i % 40 = 0 THEN pg_temp.awkward(i / 40) ELSE 'product ' || i END,
	   CASE WHEN i % 3 <> 0 THEN repeat('All about product ' || i || '. ', 1 + (i % 4)::int)
			|| CASE WHEN i % 25 = 0 THEN pg_temp.awkward(i / 25) ELSE '' END END,
	   (pg_temp.mix(i, 7) % 99999 + 1) / 100.0::float8,
	   CASE i % 1000 WHEN 1 THEN 1e-300 WHEN 2 THEN 1.7976931348623157e308 WHEN 3 THEN 0.1::float8 + 0.2
			WHEN 4 THEN 9007199254740993 WHEN 5 THEN -1e-7 WHEN 6 THEN 0
			ELSE CASE WHEN i % 4 <> 0 THEN pg_temp.mix(i, 8) / 3.0::float8 END END,
	   pg_temp.mix(i, 9) % 500,
	   timestamptz '2025-02-01 00:00:00+00' + i * interval '30.000999 seconds',
	   i % 89 = 0
FROM generate_series(1, :rows) AS g(i);

INSERT INTO orders
SELECT i, 1 + pg_temp.mix(i, 10) % :rows,
	   (ARRAY['new', 'paid', 'shipped', 'returned'])[1 + pg_temp.mix(i, 11) % 4],
	   (pg_temp.mix(i, 12) % 500000) / 100.0::float8,
	   CASE WHEN i % 20 = 0 THEN pg_temp.awkward(i / 20) WHEN i % 20 = 1 THEN 'note ' || i END,
	   timestamptz '2025-03-01 00:00:00+00' + i * interval '45.000501 seconds',
	   CASE WHEN i % 4 <> 1 THEN timestamptz '2025-03-04 00:00:00+00' + i * interval '45.9 seconds' END,
	   timestamptz '2025-03-05 00:00:00+00' + i * interval '45.000001 seconds',
	   i % 83 = 0
FROM generate_series(1, :rows) AS g(i);

\endif
\if :items

INSERT INTO order_items
SELECT i, n, 1 + pg_temp.mix(i * 3 + n, 13) % :rows, 1 + pg_temp.mix(i * 3 + n, 14) % 9,
	   (pg_temp.mix(i * 3 + n, 15) % 99999 + 1) / 100.0::float8,
	   CASE WHEN (i + n) % 30 = 0 THEN pg_temp.awkward(i / 30) END,
	   timestamptz '2025-03-05 00:00:00+00' + i * interval '45.000001 seconds',
	   (i + n) % 101 = 0
FROM generate_series(1, :rows) AS g(i), generate_series(1, CASE WHEN i % 5 = 0 THEN 2 ELSE 1 END) AS l(n)
WHERE EXISTS (SELECT FROM orders o WHERE o.order_id = i);

\endif
COMMIT;
