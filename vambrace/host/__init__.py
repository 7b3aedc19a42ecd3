"""The host daemon: the life cycle 401–406 of Realms behind an HTTPS API.

    __main__   start: gate, settings, TrustZone, API
    api        aiohttp routes          problems   RFC 9457 answers
    host       all Realms: admission, uploads, platform
    realm      one Realm: its stages, deadlines and end
    agent      what the guest's agent asks for (hostile)
    channel    opaque bytes between a user and a guest's vsock port
    vmm        client side of the control protocol
    evidence   challenge, endorsement   keys      instances, key shares
    store      images and records on the persistent disk
    lifecycle  states, steps and transitions
    settings   one TOML file       metrics    coarse totals for the operator

Specification: ``docs/architecture.md``, sections 5, 6, 8, 10, 11 and 12.
"""
