# One image for every platform: `docker build -t duorelay .`
# Only plain Dockerfile instructions, so that the classic builder works as well as BuildKit.

# The version is the one of rust-toolchain.toml.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# Tables of lines, which the profile asks for, would be made for every crate and then stripped.
ENV CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_PROFILE_RELEASE_DEBUG=0
# The slim image has a compiler, and no make, which jemalloc's sources need.
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*

# Dependencies are a layer of their own, which is built again only when one of these files changes.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY benches benches
COPY fuzz fuzz
RUN mkdir src && touch src/lib.rs && echo 'fn main() {}' >src/main.rs \
    && cargo build --release --locked \
    && rm -r src

COPY src src
# Files keep their age when they are copied, which would make them older than the stand-ins above.
RUN touch src/lib.rs src/main.rs && cargo build --release --locked

FROM debian:bookworm-slim
# The roots for https: Google's keys, an issuer's keys, Redis over TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /build/target/release/duorelay /usr/local/bin/duorelay

ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="duorelay" \
    org.opencontainers.image.description="A private two-device WebSocket relay: one user's phone and desktop stream to each other, on any number of machines" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"

# Nobody, and nothing that it could write to: the process needs no file but its own.
USER 65532:65532
WORKDIR /
EXPOSE 3000
STOPSIGNAL SIGTERM
# Live, not ready: a restart of every instance does not bring Redis back.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["duorelay", "health"]
# The binary is PID 1 and gets SIGTERM itself.
ENTRYPOINT ["duorelay"]
CMD ["serve"]
