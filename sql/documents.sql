-- What can be wrong with a document's definition; what a preview tells; catalog and triggers of one that is added.
\set VERBOSITY verbose
\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS crate_sync;
SET client_min_messages = warning;
CREATE SCHEMA docs;
SET search_path TO docs, public;
CREATE TABLE author (id int PRIMARY KEY, name text, born date, note text);
CREATE TABLE publisher (id int PRIMARY KEY, name text);
CREATE TABLE book (id int PRIMARY KEY, isbn text UNIQUE, title text, publisher_id int REFERENCES publisher, editor_id int REFERENCES author,
	reader_id int REFERENCES author, extra jsonb, price numeric(10,2));
CREATE TABLE book_author (id int PRIMARY KEY, isbn text REFERENCES book (isbn), author_id int REFERENCES author);
CREATE INDEX ON book_author (isbn);
CREATE TABLE lonely (id int PRIMARY KEY, x point, t text[]);
CREATE TABLE keyless (id int);
CREATE VIEW books AS SELECT * FROM book;

\set VERBOSITY default
CREATE FUNCTION try(schema jsonb) RETURNS TABLE (sqlstate text, message text, detail text, hint text) LANGUAGE plpgsql AS $$
DECLARE
	s text; m text; d text; h text;
BEGIN
	PERFORM * FROM crate_sync.preview_document(schema);
	RETURN QUERY SELECT 'ok', NULL, NULL, NULL;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS s = RETURNED_SQLSTATE, m = MESSAGE_TEXT, d = PG_EXCEPTION_DETAIL, h = PG_EXCEPTION_HINT;
	RETURN QUERY SELECT s, m, nullif(d, ''), nullif(h, '');
END $$;
\x on
\t on
\pset format unaligned
SELECT * FROM try('[]');
SELECT * FROM try('"book"');
SELECT * FROM try('{}');
SELECT * FROM try('{"table": ""}');
SELECT * FROM try('{"nodes": {"table": "book"}, "databases": "x"}');
SELECT * FROM try('{"nodes": {"table": "book"}, "database": "elsewhere"}');
SELECT * FROM try('{"nodes": [{"table": "book"}]}');
SELECT * FROM try('{"table": "book"}');
SELECT * FROM try('{"table": "book", "schema": "nowhere"}');
SELECT * FROM try('{"table": "nothing", "schema": "docs"}');
SELECT * FROM try('{"table": "books", "schema": "docs"}');
SELECT * FROM try('{"table": "keyless", "schema": "docs"}');
SELECT * FROM try('{"table": "book", "schema": "docs", "colums": []}');
SELECT * FROM try('{"table": "book", "schema": "docs", "columns": "title"}');
SELECT * FROM try('{"table": "book", "schema": "docs", "columns": ["nothing"]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "columns": ["title", "title"]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "columns": ["extra->a"]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "where": "price > 0"}');
SELECT * FROM try('{"table": "book", "schema": "docs", "transform": {"concat": {}}}');
SELECT * FROM try('{"table": "book", "schema": "docs", "transform": {"renames": {}}}');
SELECT * FROM try('{"table": "book", "schema": "docs", "transform": {"rename": {"title": "price"}}}');
SELECT * FROM try('{"table": "book", "schema": "docs", "transform": {"rename": {"title": "a.b"}}}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": {}}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [1]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "publisher", "schema": "docs"}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "publisher", "schema": "docs", "relationship": {"variant": "object"}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "publisher", "schema": "docs", "relationship": {"type": "one_to_two", "variant": "object"}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "publisher", "schema": "docs", "relationship": {"type": "one_to_one", "variant": "array"}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "publisher", "schema": "docs", "relationship": {"type": "one_to_one", "variant": "object", "links": []}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "publisher", "schema": "docs", "relationship": {"type": "one_to_one", "variant": "scalar"}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "author", "schema": "docs", "relationship": {"type": "one_to_one", "variant": "object"}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "lonely", "schema": "docs", "relationship": {"type": "one_to_one", "variant": "object"}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "author", "schema": "docs", "relationship": {"type": "one_to_one", "variant": "object", "foreign_key": {"parent": ["editor_id"], "child": ["id", "name"]}}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "author", "schema": "docs", "relationship": {"type": "one_to_one", "variant": "object", "foreign_key": {"parent": ["editor"], "child": ["id"]}}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "author", "schema": "docs", "relationship": {"type": "one_to_one", "variant": "object", "foreign_key": {"parent": ["title"], "child": ["id"]}}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "lonely", "schema": "docs", "columns": ["t"], "relationship": {"type": "one_to_many", "variant": "scalar", "foreign_key": {"parent": ["id"], "child": ["id"]}}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "author", "schema": "docs", "label": "title", "relationship": {"type": "one_to_many", "variant": "object", "through_tables": ["book_author"]}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "author", "schema": "docs", "label": "x", "relationship": {"type": "one_to_many", "variant": "object", "through_tables": ["book_author", "x"]}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "author", "schema": "docs", "label": "_id", "relationship": {"type": "one_to_many", "variant": "object", "through_tables": ["book_author"]}}]}');
SELECT * FROM try('{"table": "book", "schema": "docs", "children": [{"table": "book", "schema": "docs", "label": "x", "relationship": {"type": "one_to_many", "variant": "object"}}]}');
\x off
\t off
\pset format aligned
-- what is ignored is said
SELECT path, note FROM crate_sync.preview_document('{"index": "b", "plugins": ["x"], "setting": {}, "routing": "id", "nodes":
	{"table": "publisher", "schema": "docs", "transform": {"mapping": {}, "move": {}}}}');
-- the tree, its links, and the indexes that it lacks
SELECT path, source, source_type, target_column, target_type, is_key, note FROM crate_sync.preview_document('{"table": "book", "schema": "docs", "columns": ["title", "price"],
	"transform": {"rename": {"price": "costs"}}, "children": [
	{"table": "author", "schema": "docs", "label": "authors", "columns": ["name", "born"],
		"relationship": {"type": "one_to_many", "variant": "object", "through_tables": ["book_author"]}},
	{"table": "publisher", "schema": "docs", "columns": ["name"], "relationship": {"type": "one_to_one", "variant": "scalar"}},
	{"table": "author", "schema": "docs", "label": "editor", "columns": ["name"],
		"relationship": {"type": "one_to_one", "variant": "object", "foreign_key": {"parent": ["editor_id"], "child": ["id"]}}}]}');
-- added: what is stored, what it is read by, and its triggers
SET client_min_messages = error;
SELECT crate_sync.add_document('{"table": "book", "schema": "docs", "columns": ["title"], "children": [
	{"table": "author", "schema": "docs", "label": "authors", "columns": ["name"],
		"relationship": {"type": "one_to_many", "variant": "object", "through_tables": ["book_author"]}}]}', 'docs.library', row_filter => 'price > 0');
SELECT relid, target_table, key_columns, jsonb_pretty(definition), relations FROM crate_sync.mirror WHERE target_table = 'library';
SELECT crate_sync.get_document_query('docs.library');
SELECT tgrelid::regclass, regexp_replace(tgname, '\d+_', 'N_') AS name, encode(tgargs, 'escape') AS args FROM pg_trigger
	WHERE tgname LIKE 'crate\_sync\_link%' ORDER BY 1, 2;
SELECT crate_sync.add_document('{"table": "book", "schema": "docs"}', 'docs.library');
SELECT crate_sync.add_document('{"table": "book", "schema": "docs"}', 'docs.library', if_not_exists => true);
SELECT crate_sync.add_table('book', 'docs.library');
SELECT * FROM crate_sync.add_documents('[{"database": "elsewhere", "index": "a", "nodes": {"table": "book"}},
	{"index": "docs_author", "nodes": {"table": "author", "schema": "docs"}}, 7]');
SELECT crate_sync.get_document_query('nothing');
SELECT crate_sync.remove_document('nothing');
SELECT crate_sync.remove_document('nothing', if_exists => true);
SELECT crate_sync.remove_document('docs.library');
SELECT crate_sync.remove_document('docs.docs_author');
SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crate\_sync\_link%';
-- whose tables they are
CREATE ROLE docs_other;
GRANT USAGE ON SCHEMA docs, crate_sync TO docs_other;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA crate_sync TO docs_other;
CREATE TABLE his (id int PRIMARY KEY, book_id int);
ALTER TABLE his OWNER TO docs_other;
SELECT crate_sync.add_document('{"table": "book", "schema": "docs", "children": [{"table": "his", "schema": "docs",
	"relationship": {"type": "one_to_many", "variant": "object", "foreign_key": {"parent": ["id"], "child": ["book_id"]}}}]}');
SET ROLE docs_other;
SELECT crate_sync.add_document('{"table": "book", "schema": "docs"}');
RESET ROLE;
SET client_min_messages = error;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA crate_sync FROM docs_other;
REVOKE USAGE ON SCHEMA crate_sync FROM docs_other;
DROP SCHEMA docs CASCADE;
DROP ROLE docs_other;
