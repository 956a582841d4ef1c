#!/bin/sh
# Passwords and keys for compose.yaml, once: into docker/.env, for its owner alone.
set -eu
cd "$(dirname "$0")"
[ ! -e .env ] || { echo "docker/.env is there already" >&2; exit 0; }
random() { head -c "$1" /dev/urandom | base64 | tr -d '\n' | tr '+/' '-_'; }
umask 077
cat >.env <<ENV
POSTGRES_PASSWORD=$(random 24)
FERNET_KEY=$(random 32)
API_SECRET=$(random 48)
JWT_SECRET=$(random 64)
DOCKER_GID=$(stat -c %g /var/run/docker.sock 2>/dev/null || echo 0)
ENV
echo "wrote docker/.env"
