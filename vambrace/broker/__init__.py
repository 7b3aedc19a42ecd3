"""The key broker: hands a secret to a Realm only after appraisal against the policy bound to that secret.

::

    server       HTTPS: the KBS protocol for Realms, an API for owners      settings   broker.toml
    release      every decision, and the audit entry that goes with it      sessions   challenges, one connection each
    policy       what a Realm must be to have a secret                      platforms  vendors' roots, reference values
    store        the database, one transaction for each batch of decisions  audit      the chain of entries
    vault        encryption at rest                                         envelope   JWE to the key in the evidence
    names        names of resources                                         setup      a new broker

Needs no KVM and no root. Import from the modules: this file imports nothing.
"""
