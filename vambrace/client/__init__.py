"""The user's side: hosts, Realms, attested channels.

    context    the user's state directory          channel    attested TLS to a Realm's agent
    host       the host's HTTP API                 domain     what a domain of any class is to its user
    attested   a domain with a token and an agent  realm, secure, normal   domains from their bundles to their ends
    console    of a Normal VM
    trust      vendor roots, reference values      results    files of a Realm, safely on disk
    progress   how far a long step is

Specification: ``docs/architecture.md``, sections 7, 8, 9, 11 and 12.
"""
