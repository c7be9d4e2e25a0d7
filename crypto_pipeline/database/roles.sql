-- Three roles for one database of candles, each with the rights it needs and no more:
--
--   the owner                whoever runs this; made the tables and migrates them
--   crypto_pipeline_writer   runs: collect, validate, store
--   crypto_pipeline_reader   people and programs that read candles
--
-- Run it as the owner of database and tables, after they were made; again whenever you like, for
-- example after a new version's migration. It makes the two roles where they are missing, which takes
-- CREATEROLE (or an administrator makes them before). Then give people users of their own:
--
--   CREATE ROLE collector LOGIN IN ROLE crypto_pipeline_writer;   -- \password collector sets one
--   CREATE ROLE analyst LOGIN IN ROLE crypto_pipeline_reader;
--
-- Plain SQL, one transaction: any client can run it. docs/security.md says more.
BEGIN;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['crypto_pipeline_writer', 'crypto_pipeline_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
    -- PUBLIC may make temporary tables, and before PostgreSQL 15 tables in public: everybody.
    EXECUTE format('REVOKE CREATE, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO crypto_pipeline_writer, crypto_pipeline_reader',
        current_database());
    -- Rows go through a temporary table on their way into candles.
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO crypto_pipeline_writer', current_database());
END
$$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO crypto_pipeline_writer, crypto_pipeline_reader;

-- Every command first looks whether the tables are of its version.
GRANT SELECT ON crypto_pipeline_version TO crypto_pipeline_writer, crypto_pipeline_reader;

GRANT SELECT ON
    candles, live_candles, rejected_candles, candle_gaps, candle_partitions, exchange_states,
    request_budgets, candle_series, candle_hours, latest_candles
TO crypto_pipeline_reader;
GRANT EXECUTE ON FUNCTION
    candles_filled(text, text, text, timestamptz, timestamptz)
TO crypto_pipeline_writer, crypto_pipeline_reader;

GRANT SELECT, INSERT, UPDATE ON
    candles, live_candles, candle_partitions, exchange_states, request_budgets, exchange_markets
TO crypto_pipeline_writer;
GRANT SELECT, INSERT ON rejected_candles, candle_series TO crypto_pipeline_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON candle_gaps, candle_hours TO crypto_pipeline_writer;
GRANT EXECUTE ON FUNCTION
    take_request_place(text, interval, interval, bigint, bigint, double precision)
TO crypto_pipeline_writer;

-- Tables that later migrations of this owner make. Functions are everybody's, with the caller's rights.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO crypto_pipeline_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO crypto_pipeline_writer;

COMMIT;
