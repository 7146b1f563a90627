"""The peer's way in over HTTP: what a user of livekit-agents writes to give callers a token, on the same web stack.

One request to LiveKit makes the room and dispatches the agent, which is the quickest way there is: the agent is on its
way before the caller has the token. Asking for the agent in the token, or in a second request, starts it later.
"""

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request
from livekit import api
from pydantic import BaseModel

EMPTY_SECONDS, DEPARTURE_SECONDS = 300, 20
"""As Greenroom's rooms."""


class Start(BaseModel):
    """Who calls."""

    userName: str


class End(BaseModel):
    """Which call to end."""

    sessionId: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one client, and its connection, for all requests."""
    async with api.LiveKitAPI() as service:
        app.state.livekit = service
        yield


async def start(body: Start, request: Request) -> dict[str, str]:
    """Make a room with an agent on its way, and a token for the caller."""
    name = f"session_{uuid.uuid4().hex}"
    service: api.LiveKitAPI = request.app.state.livekit
    await service.room.create_room(
        api.CreateRoomRequest(
            name=name,
            empty_timeout=EMPTY_SECONDS,
            departure_timeout=DEPARTURE_SECONDS,
            agents=[api.RoomAgentDispatch(agent_name="tone")],
        )
    )
    token = api.AccessToken().with_identity(f"caller_{uuid.uuid4().hex}").with_name(body.userName)
    grants = api.VideoGrants(room_join=True, room=name)
    answer = {"sessionId": name, "status": "assigned", "serverUrl": os.environ["LIVEKIT_URL"]}
    return answer | {"token": token.with_grants(grants).to_jwt()}


async def end(body: End, request: Request) -> dict[str, bool]:
    """End a call: the framework's own way is to delete its room."""
    service: api.LiveKitAPI = request.app.state.livekit
    try:
        await service.room.delete_room(api.DeleteRoomRequest(room=body.sessionId))
    except api.TwirpError as error:
        if error.code != api.TwirpErrorCode.NOT_FOUND:
            raise
    return {"success": True}


app = FastAPI(lifespan=lifespan)
app.add_api_route("/orchestrator/session/start", start, methods=["POST"])
app.add_api_route("/orchestrator/session/end", end, methods=["POST"])

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning", access_log=False)
