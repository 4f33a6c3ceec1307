"""Where tests fork processes from: a server that has loaded everything already, one for all of them."""

import multiprocessing

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["torch._dynamo", "velodrome.session", "velodrome.ranks", "velodrome.cli", "velodrome.verbs"]
)
