# In the place of the official image where no registry is reached: the providers that this project needs of it.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /
RUN pip install --no-cache-dir -c /constraints.txt apache-airflow apache-airflow-providers-docker \
        apache-airflow-providers-cncf-kubernetes psycopg2-binary asyncpg \
    && useradd --uid 50000 --gid 0 --home-dir /opt/airflow --create-home airflow \
    && install -d -o airflow -g root -m 775 /opt/airflow/logs /opt/airflow/dags
ENV AIRFLOW_HOME=/opt/airflow
USER 50000:0
WORKDIR /opt/airflow
