-- A shop, as an application would have it: nothing here knows of crate_sync.
-- Made in the first schema of search_path.

CREATE TABLE customers (
	customer_id bigint PRIMARY KEY,
	name text NOT NULL,
	email text,
	city text,
	credit double precision,
	created_at timestamptz NOT NULL DEFAULT now(),
	updated_at timestamptz NOT NULL DEFAULT now(),
	is_deleted boolean NOT NULL DEFAULT false
);

CREATE TABLE categories (
	category_id int PRIMARY KEY,
	parent_id int REFERENCES categories,
	name text NOT NULL,
	updated_at timestamptz NOT NULL DEFAULT now(),
	is_deleted boolean NOT NULL DEFAULT false
);

CREATE TABLE products (
	product_id int PRIMARY KEY,
	category_id int NOT NULL REFERENCES categories,
	sku text NOT NULL UNIQUE,
	name text NOT NULL,
	description text,
	price double precision NOT NULL,
	weight double precision,
	stock int NOT NULL DEFAULT 0,
	updated_at timestamptz NOT NULL DEFAULT now(),
	is_deleted boolean NOT NULL DEFAULT false
);

CREATE TABLE orders (
	order_id bigint PRIMARY KEY,
	customer_id bigint NOT NULL REFERENCES customers,
	status text NOT NULL,
	total double precision NOT NULL,
	note text,
	ordered_at timestamptz NOT NULL DEFAULT now(),
	shipped_at timestamptz,
	updated_at timestamptz NOT NULL DEFAULT now(),
	is_deleted boolean NOT NULL DEFAULT false
);

CREATE TABLE order_items (
	order_id bigint NOT NULL REFERENCES orders ON DELETE CASCADE,
	line_no smallint NOT NULL,
	product_id int NOT NULL REFERENCES products,
	quantity int NOT NULL,
	price double precision NOT NULL,
	comment text,
	updated_at timestamptz NOT NULL DEFAULT now(),
	is_deleted boolean NOT NULL DEFAULT false,
	PRIMARY KEY (order_id, line_no)
);
