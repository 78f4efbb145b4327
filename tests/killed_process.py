"""A function in a process of its own: how that ends, by itself or by SIGKILL."""

import multiprocessing
import time

PROCESSES = multiprocessing.get_context("forkserver")


def ended(function, *arguments):
    """The exit code of a process that runs ``function``."""
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def killed(seconds, function, *arguments):
    """The same, killed so many seconds after ``function`` has sent word through its last argument."""
    hears, tells = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=function, args=(*arguments, tells))
    process.start()
    assert hears.recv()
    time.sleep(seconds)
    process.kill()
    process.join()
    return process.exitcode
