"""Evidence about Realms: read, verify and decide. Needs no KVM, no root and no Linux.

::

    verify       the verifier: raises, or returns a VerifiedRealm        policy      what is acceptable
    token        decode a token, unverified                              claims      its claims, typed; cca: Arm's
    profiles     whose tokens are understood, and their rules            claimset    access to a map of claims
    signatures   of a token's halves, and what binds them                show        a token for people
    references   reference values of a platform (CoRIM)                  endorsement the vendor's authority
    owner        the owner's identity and signed messages                challenge   what tokens are bound to
    chain        X.509 chains                 cose   COSE_Sign1; keys: COSE_Key     cbor   deterministic CBOR

Import from the modules: this file imports nothing, so that a caller pays only for what it uses.
"""
