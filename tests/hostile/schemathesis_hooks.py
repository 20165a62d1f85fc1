"""How schemathesis writes NDJSON: the document calls it text, and so it is sent."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx, value):
    return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "surrogatepass")
