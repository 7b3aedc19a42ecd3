"""The owner's manifest: YAML whose every mistake is told with its line.

name: patients
class: realm                     # unless given; or secure: no percentages, verdict and endpoints
owner: owner.pem                 # what 'vambrace owner show' prints
suite: nist                      # unless given; or sm: SM2, SM3 and SM4
system: {memory: 384M}           # percent: as the highest of the applications', unless given
applications:
  - name: analysis
    files: analysis              # a folder, or a list of files and folders
    command: [python3, analyse.py]
    memory: 128M
    percent: 80
    results: [result.txt]        # below /results/analysis
    publish: [5432]              # TCP ports on which it serves its owner, docs/connect.md
    registers: [1]               # measurement registers that it may extend, 1 to 3: docs/events.md
    scratch: 512M                # disk for this run, at /scratch: docs/volumes.md
    encrypt: {resource: patients/key/files} # its files, for a key of the broker's
    packages: [postgresql]       # Debian's, in the root of this Realm, docs/images.md
    python: {requirements: requirements.txt}
  - name: service
    java: service.jar            # in the place of a command; or {archive: service.jar, options: […], arguments: […]}
endpoints:                       # for messages between Realms, docs/messages.md
  - offer: records               # or connect: records
    port: 8000                   # on the loopback of this Realm
    realm: ward                  # the other one's name; any, unless given
    owner: ward.pem              # its owner's certificate; the same owner, unless given
cache: {percent: 25}             # so much of the last-level cache for itself; demand: required, unless preferred
networks:                        # network cards, docs/network.md
  - name: lab                    # a network of the host; its name alone will do
    address: 10.0.0.2/24
    gateway: 10.0.0.1
devices:                         # PCI devices for this domain alone, docs/devices.md
  - name: disk
    kind: nvme                   # or network, gpu, accelerator, or vendor:device
    application: analysis        # whose device it is; nobody's but the kernel's, unless given
    address: 192.0.2.7/24        # of a network card

broker:                          # where secrets come from, docs/broker.md
  url: https://broker:8444
  certificate: broker.pem
  secrets:
    - name: password             # what the application asks its agent for
      application: analysis
      resource: patients/secret/password
sealing: {to: owner, version: 2} # or to: measurement, without version
volumes:                         # disks that outlive the Realm, docs/volumes.md
  - name: records
    application: analysis
    size: 1G
    mount: /data/records         # where the application finds it
    key: patients/volume/records # the broker's, or sealed

A Normal VM is somebody's system as it is:

name: debian
class: normal
memory: 512M
debian: {files: files}           # a stock Debian system, with these files over it; or a system of your own:
kernel: vmlinuz
initrd: initrd.img
disks: [root.ext4]               # each domain writes to a copy of its own
cmdline: root=/dev/vda rw

What every attested domain has is in ``attested``, with the parts of a Realm in ``realm``; what its programs are
made from is in ``application`` (with ``languages``), ``container`` and ``vm``, and what is asked of the host in
``zones``, ``storage`` and ``devices``. A Normal VM is in ``normal``. ``lines`` is the YAML below all of them.
"""

from vambrace.image.manifest.application import Program
from vambrace.image.manifest.attested import Manifest
from vambrace.image.manifest.devices import Hardware, NetworkCard
from vambrace.image.manifest.normal import NormalManifest
from vambrace.image.manifest.read import read_manifest
from vambrace.image.manifest.zones import parse_memory

__all__ = ["Hardware", "Manifest", "NetworkCard", "NormalManifest", "Program", "parse_memory", "read_manifest"]
