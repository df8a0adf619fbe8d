"""Convert image files to rows and rows to image files; the only package that imports Pillow.

    file ── open ──────── decode ── prepare ──▶ row        row ── to_uint8 ── enlarge, contact_sheet
    ── encode ──▶ file
                       └─ to_mask ── keep_mask
                       └─ animate

Every function is synchronous and thread-safe, so that the codec pool can call it.
"""
