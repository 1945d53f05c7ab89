# syntax=docker/dockerfile:1
# Builds from a checkout: docker build -t understudy .
# Run: docker run -p 6432:6432 -v ./understudy.yaml:/etc/understudy/understudy.yaml:ro understudy
# Inside a container listen.host must be 0.0.0.0 for applications outside of it to connect.

FROM node:20-slim AS build
WORKDIR /src
COPY package.json package-lock.json .npmrc ./
# The embedded servers among the development dependencies need no set-up here: scripts stay off.
RUN npm ci --ignore-scripts
COPY tsconfig.json tsconfig.build.json ./
COPY src ./src
RUN npm run build

FROM node:20-slim
ENV NODE_ENV=production
WORKDIR /opt/understudy
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev --ignore-scripts && npm cache clean --force
COPY --from=build /src/dist ./dist
COPY LICENSE ./
RUN ln -s /opt/understudy/dist/app/main.js /usr/local/bin/understudy && chmod +x dist/app/main.js
# The image's own unprivileged account, by number so that a cluster can see that it is not root.
USER 1000:1000
EXPOSE 6432 6433
# Alive, not ready: a container must not be restarted because a database is down.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
  CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.UNDERSTUDY_ADMIN_PORT || 6433}/livez`).then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
# SIGTERM stops it gracefully; node as process 1 gets it directly.
STOPSIGNAL SIGTERM
ENTRYPOINT ["node", "/opt/understudy/dist/app/main.js"]
CMD ["run", "--config", "/etc/understudy/understudy.yaml"]
