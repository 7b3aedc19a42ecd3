"""Evidence about Realms: read, verify and decide. Needs no KVM, no root and no Linux.

::

    verify       the verifier: raises, or returns a VerifiedRealm        policy      what is acceptable
    token        decode and describe a token, unverified                 claims      its claims, typed
    references   reference values of a platform (CoRIM)                  endorsement the vendor's authority
    owner        the owner's identity and signed messages                challenge   what tokens are bound to
    chain        X.509 chains                 cose   COSE_Sign1, COSE_Key           cbor   deterministic CBOR

Import from the modules: this file imports nothing, so that a caller pays only for what it uses.
"""
