#!/bin/sh
# Makes the roles of Leadkeep and its database. PostgreSQL's image runs this once, when its data folder is new; for
# a server of your own run it once as a superuser (PGHOST, POSTGRES_USER, … as psql reads them).
#
#   leadkeep_admin  owns the database, for `leadkeep migrate`
#   leadkeep_app    group without login: the migrations grant it what the service may do, and nothing more
#   leadkeep_serve  the service's login; its rights are those of leadkeep_app
set -eu
: "${LEADKEEP_ADMIN_PASSWORD:?set the password of leadkeep_admin}"
: "${LEADKEEP_SERVE_PASSWORD:?set the password of leadkeep_serve}"

# \getenv, not arguments: those could be read in the list of processes. psql's :'…' quotes whatever stands in them.
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\getenv admin_password LEADKEEP_ADMIN_PASSWORD
\getenv serve_password LEADKEEP_SERVE_PASSWORD
-- A statement that fails or is slow must not carry a password into the server's log.
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;
CREATE ROLE leadkeep_app NOLOGIN;
-- So that the service sees whether its synchronous standbys are there.
GRANT pg_monitor TO leadkeep_app;
CREATE ROLE leadkeep_admin LOGIN PASSWORD :'admin_password';
CREATE ROLE leadkeep_serve LOGIN PASSWORD :'serve_password' IN ROLE leadkeep_app;
-- Leadkeep sets these for its own sessions; behind a pooler it cannot, and refuses to start without them.
ALTER ROLE leadkeep_serve SET synchronous_commit = 'on';
ALTER ROLE leadkeep_serve SET client_min_messages = 'notice';
ALTER ROLE leadkeep_serve SET lock_timeout = '200ms';
ALTER ROLE leadkeep_serve SET idle_in_transaction_session_timeout = '10s';
ALTER ROLE leadkeep_serve SET client_encoding = 'UTF8';
ALTER ROLE leadkeep_serve SET DateStyle = 'ISO', 'MDY';
ALTER ROLE leadkeep_serve SET IntervalStyle = 'postgres';
ALTER ROLE leadkeep_serve SET TimeZone = 'UTC';
ALTER ROLE leadkeep_serve SET bytea_output = 'hex';
ALTER ROLE leadkeep_serve SET standard_conforming_strings = 'on';
ALTER ROLE leadkeep_serve SET default_transaction_isolation = 'read committed';
ALTER ROLE leadkeep_serve SET row_security = 'off';
ALTER ROLE leadkeep_serve SET search_path = 'public';
CREATE DATABASE leadkeep OWNER leadkeep_admin ENCODING 'UTF8' TEMPLATE template0;
-- By default every role of the server may connect to every database.
REVOKE ALL ON DATABASE leadkeep FROM PUBLIC;
GRANT CONNECT ON DATABASE leadkeep TO leadkeep_app;
SQL
