# The first start of the official image, as far as compose.yaml relies on it; then the server.
set -eu
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  echo "$POSTGRES_PASSWORD" >/tmp/password
  initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth-host=scram-sha-256 >/dev/null
  rm /tmp/password
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl start --wait --silent --options="-c listen_addresses='' -k /tmp"
  createdb -h /tmp -U "$POSTGRES_USER" "$POSTGRES_DB"
  for script in /docker-entrypoint-initdb.d/*.sql; do psql -h /tmp -U "$POSTGRES_USER" -d "$POSTGRES_DB" -f "$script"; done
  pg_ctl stop --wait --silent
fi
exec postgres -c "listen_addresses=*" -k /tmp
