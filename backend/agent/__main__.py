"""``python -m backend.agent``: one agent alone."""

import os
import sys

from backend.agent import alone

if __name__ == "__main__":
    code = alone.main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # LiveKit's library sometimes aborts in its exit handlers, after all is done
