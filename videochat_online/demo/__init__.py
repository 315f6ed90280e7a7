"""The page: a live video to talk to in the browser, on top of `serving`."""

from videochat_online.extras import require

require("the demo", "gradio", "fastapi", "uvicorn")
