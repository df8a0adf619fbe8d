"""The methods of both clients: each function turns its arguments into a `Call`.

The only I/O here is reading picture files. The service has defaults for omitted options; the signatures show them.
Every method takes

- `timeout`: seconds for one attempt; None for the limit of the service; the timeout of the client by default;
- `request_id`: an id, ``[A-Za-z0-9._-]{1,128}``, which the service repeats in the response and in its log;

and raises

- `InputError`: an argument cannot be sent;
- `TransportError`: there was no response;
- `StatusError`: the service answered with an error; there is one class for each status;
- `UnexpectedAnswer`: the response does not come from ign-service.
"""
