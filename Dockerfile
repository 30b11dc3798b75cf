FROM node:24-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
# Without the development dependencies there is no `node` package: the image's own Node 24 runs everything.
RUN npm ci --omit=dev

FROM node:24-slim
ENV NODE_ENV=production
# Compiled code is kept for the next start of the same container: half the time to ready, and 20 MB less.
ENV NODE_COMPILE_CACHE=/tmp/node-compile-cache
WORKDIR /app
COPY --from=dependencies /app/node_modules node_modules
COPY package.json ./
COPY migrations/committed migrations/committed
COPY src src
USER node
EXPOSE 50051 8080
# Readiness, not liveness: what waits for this container wants calls answered. Nothing restarts it for being unhealthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["node", "src/commands/health-check.ts"]
# Node itself is process 1, so that signals reach src/main.ts; another command is run by naming its file.
ENTRYPOINT ["node"]
# As `npm start`: a large young generation under load, and what the start grew it to given back.
CMD ["--expose-gc", "--max-semi-space-size=64", "--import", "./src/early-signals.ts", "src/main.ts"]
