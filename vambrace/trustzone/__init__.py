"""This machine's TrustZone: keys, random numbers and evidence from the trusted application (``firmware/ta``).

``InsecurePlatform`` is imported from ``vambrace.trustzone.insecure`` by those who ask for it explicitly.
"""

from vambrace.trustzone.claims import RealmClaims, SealingClaims
from vambrace.trustzone.session import TrustZone

__all__ = ["RealmClaims", "SealingClaims", "TrustZone"]
