# In the place of the official image where no registry is reached: the same variables, the same folder of first scripts.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o postgres -g postgres /var/lib/postgresql/data /docker-entrypoint-initdb.d
COPY postgres.sh /
ENV PGDATA=/var/lib/postgresql/data/pgdata
USER postgres
ENTRYPOINT ["sh", "/postgres.sh"]
