"""A Lambda container on this machine: AWS's runtime client, in a process of its own, on a Runtime API of ours.

`LambdaContainer` is the platform around one execution environment. It acts on `RuntimeProcess` (the process group),
`RuntimeApi` (what the runtime client asks) and `Invocation` (one event and what became of it).
"""
