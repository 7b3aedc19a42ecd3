"""Evidence about Realms: read, verify and decide. Needs no KVM, no root and no Linux.

::

    verify       raises, or returns what a token states                  policy      what is acceptable
    appraisal    all that is right and wrong with a token                checks      of ours; ccachecks: of Arm's
    anchors      what is believed without evidence                       revocation  X.509 lists
    ear          an appraisal as a signed result                         trustworthiness  its vector and tiers
    token        decode a token, unverified                              claims      its claims, typed; cca: Arm's
    profiles     whose tokens are understood, and their rules            claimset    access to a map of claims
    signatures   of a token's halves, and what binds them                show        a token for people
    references   reference values of our platforms; ccavalues: Arm's     corim       the form of both
    endorsement  the vendor's authority                                  chain       X.509 chains
    owner        the owner's identity and signed messages                challenge   what tokens are bound to
    cose         COSE_Sign1; keys: COSE_Key                              cbor        deterministic CBOR

Import from the modules: this file imports nothing, so that a caller pays only for what it uses.
"""
