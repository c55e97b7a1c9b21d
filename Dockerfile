# One image for every role; the command says which: capture, apply, api, up, migrate.
#
# Written without a container engine at hand: it has not been built yet.

FROM rust:1.95-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake g++ make perl pkg-config libssl-dev zlib1g-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The cache mounts keep downloads and objects between builds; the binary leaves by the copy.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin bunny \
 && cp target/release/bunny /usr/local/bin/bunny

FROM debian:bookworm-slim
# libssl for Kafka over TLS, CA certificates for Postgres over TLS, curl for the health check.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl libssl3 zlib1g \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --no-create-home --uid 10001 bunny
COPY --from=build /usr/local/bin/bunny /usr/local/bin/bunny
USER bunny
EXPOSE 8112
ENTRYPOINT ["bunny"]
CMD ["up"]
