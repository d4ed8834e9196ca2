"""Data at scale: records in shards of ArrayRecord files, written once and read by index, on disk or in a bucket.

A folder of records is NAME-00000-of-00016.array_record and so on, a NAME-00000-of-00016.json beside each, and
`manifest.json`, written last: without it the folder is not whole. A record is a dictionary of arrays, encoded as
safetensors; record i of a folder is found without reading another.

    encoding    one record as bytes, and back
    shards      one shard: its name, and how it is written so that it is whole or absent
    manifest    what a folder holds, with the SHA-256 of every shard
    writing     all shards of a `Job`, by several processes and machines; written again, only those that are missing
    source      random access to the records of a folder, with a local cache for buckets
    order       the order of training, in which a process needs its own shards only
    documents   text that can be cut into parts without reading all of it
    tokens      the job that turns documents into rows of tokens
    teacher     the job that runs a teacher over such rows, and keeps its largest log probabilities
    taught      rows with the outputs of a teacher, which must belong together

Another job is another class with the members of `writing.Job`.
"""
