-- A database of orders, made by arithmetic, then indexed, changed, aggregated and checked.
PRAGMA page_size = 4096;
CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, weight REAL);
CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER REFERENCES customer, cents INTEGER, note TEXT);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
INSERT INTO customer SELECT i, 'customer ' || hex(i * 2654435761 % 4294967296), (i * 7919 % 1000) / 7.0 FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
INSERT INTO purchase SELECT i, i * 31 % 5000 + 1, i * 48271 % 2147483647 % 99999, printf('%08x', i * 16807) FROM n;
COMMIT;
CREATE INDEX purchase_by_customer ON purchase (customer, cents);
UPDATE purchase SET cents = cents + 1 WHERE id % 7 = 0;
DELETE FROM purchase WHERE id % 11 = 0;
SELECT count(*), sum(cents), min(note), max(note) FROM purchase;
SELECT name, sum(cents) AS total, round(avg(weight), 9) FROM purchase JOIN customer ON customer.id = purchase.customer
GROUP BY customer.id ORDER BY total DESC, name LIMIT 10;
SELECT count(*) FROM purchase WHERE note LIKE '%ab%' OR note GLOB '00*f';
SELECT round(sum(weight * weight), 6), round(avg(weight), 12) FROM customer;
VACUUM;
PRAGMA integrity_check;
