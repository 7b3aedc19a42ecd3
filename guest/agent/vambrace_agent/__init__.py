"""The agent: PID 1 of a Realm. It confines and starts the applications and serves the Realm's owner.

Standard library only, and few modules of it: an import costs up to a second on an emulated server.
"""


class AgentError(Exception):
    """Something the agent cannot do; the message is for the owner and names no content of files."""
