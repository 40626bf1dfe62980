-- The same data on every run: no random(), no now().

INSERT INTO warehouses (code, city)
VALUES ('BER', 'Berlin'), ('LIS', 'Lisbon'), ('OSL', 'Oslo'), ('VIE', 'Vienna');

INSERT INTO products (sku, name, unit_price)
SELECT 'SKU-' || lpad(n::text, 4, '0'), 'Product ' || n, (n * 137 % 9000) / 100.0 + 1
FROM generate_series(1, 50) AS n;

-- Every warehouse has a shelf for every product; one shelf in ten is empty.
INSERT INTO inventory (warehouse_id, product_id, quantity)
SELECT w.id, p.id, CASE WHEN (w.id + p.id) % 10 = 0 THEN 0 ELSE 10000 END
FROM warehouses AS w CROSS JOIN products AS p;

INSERT INTO sales (product_id, quantity, unit_price, sold_at)
SELECT p.id, n % 5 + 1, p.unit_price, timestamptz '2026-01-01 00:00:00+00' + n * interval '7 minutes'
FROM generate_series(1, 2000) AS n JOIN products AS p ON p.id = n % 50 + 1
ORDER BY n;

INSERT INTO fulfilments (warehouse_id, created_at)
SELECT n % 4 + 1, timestamptz '2026-01-01 00:00:00+00' + n * interval '1 hour'
FROM generate_series(1, 200) AS n
ORDER BY n;

INSERT INTO fulfilment_items (fulfilment_id, product_id, quantity)
SELECT f.id, (f.id * 3 + k) % 50 + 1, k + 1
FROM fulfilments AS f CROSS JOIN generate_series(0, 2) AS k;

ANALYZE products, warehouses, inventory, sales, fulfilments, fulfilment_items;
