"""The HTTP and WebSocket API."""

from videochat_online.extras import require

require("the HTTP API", "fastapi", "fastapi_offline", "anyio", "websockets")
