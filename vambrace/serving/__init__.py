"""What the services over HTTP have in common: the host's daemon, the broker and the verifier."""
