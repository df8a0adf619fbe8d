"""The methods of both clients: what each may be told, and the request it becomes.

Nothing here does I/O but reading the pictures handed in.
Options that are not given are left to the service, whose defaults the signatures show. Every call takes

- `timeout`: seconds for one attempt; None for the service's own limit; not given: the client's;
- `request_id`: an id of your own, ``[A-Za-z0-9._-]{1,128}``, which the service echoes and logs;

and raises

- `InputError`: what was handed in cannot be sent;
- `TransportError`: nobody answered;
- `StatusError`: the service said no; one class for every status;
- `UnexpectedAnswer`: what answered is not ign-service.
"""
