"""``vambrace verifier serve``: the verifier over HTTP. Needs no KVM, no root and no Linux.

::

    api        routes, errors, the server        openapi.yaml  their description
    questions  what a request asks, checked      service       answers it: appraises, signs the result
    settings   the file that says how            limits        rates and connections of each client
"""
