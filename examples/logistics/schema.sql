-- A small fulfilment service: what is sold, where it lies, and what leaves the house.
-- Names are unqualified: load it with the search_path that should own the tables.

CREATE TABLE products (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sku         text NOT NULL UNIQUE,
    name        text NOT NULL,
    unit_price  numeric(10, 2) NOT NULL CHECK (unit_price >= 0)
);

CREATE TABLE warehouses (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    code  text NOT NULL UNIQUE,
    city  text NOT NULL
);

-- Stock on hand. The primary key is also the order of the inventory list; rows without stock are filtered while it
-- is read. A partial index on quantity > 0 would find them sooner, and make every decrement write the index too.
CREATE TABLE inventory (
    warehouse_id  bigint NOT NULL REFERENCES warehouses,
    product_id    bigint NOT NULL REFERENCES products,
    quantity      integer NOT NULL CHECK (quantity >= 0),
    PRIMARY KEY (warehouse_id, product_id)
);
CREATE INDEX inventory_product ON inventory (product_id);

CREATE TABLE sales (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    product_id  bigint NOT NULL REFERENCES products,
    quantity    integer NOT NULL CHECK (quantity > 0),
    unit_price  numeric(10, 2) NOT NULL CHECK (unit_price >= 0),
    sold_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sales_product ON sales (product_id);
-- Newest first, with the id to break ties: the pages of the sales list.
CREATE INDEX sales_newest ON sales (sold_at DESC, id DESC);

CREATE TABLE fulfilments (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    warehouse_id  bigint NOT NULL REFERENCES warehouses,
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX fulfilments_warehouse ON fulfilments (warehouse_id);

CREATE TABLE fulfilment_items (
    fulfilment_id  bigint NOT NULL REFERENCES fulfilments ON DELETE CASCADE,
    product_id     bigint NOT NULL REFERENCES products,
    quantity       integer NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (fulfilment_id, product_id)
);
CREATE INDEX fulfilment_items_product ON fulfilment_items (product_id);
