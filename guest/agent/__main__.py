"""Entry of the agent: ``python3 -I -S /usr/lib/vambrace/agent``."""

from vambrace_agent.main import main

main()
