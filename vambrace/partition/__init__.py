"""Who owns which part of what domains could otherwise share: memory, processors, further kinds.

``ledger`` keeps account, ``processors`` knows the machine's, ``cgroups`` has the kernel enforce what was given, and
``overlap`` checks it from the numbers of the running processes.
"""
