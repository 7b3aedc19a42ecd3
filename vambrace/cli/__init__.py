"""Commands: they print, ask and exit. What they do is in ``vambrace.client`` and below."""
