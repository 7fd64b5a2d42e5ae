"""What a connection is at."""

WAITING = "waiting"  # for the first byte of a request
HEAD = "head"  # some of a head has come
BODY = "body"  # its request's chunked body is buffered (see `gather`)
SERVING = "serving"  # the application works on a request
LINGERING = "lingering"  # everything was said; what the client still sends is thrown away
PASSED = "passed"  # given to another worker, which has not acknowledged it yet
CLOSED = "closed"
