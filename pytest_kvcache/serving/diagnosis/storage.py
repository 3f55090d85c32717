"""Why LMCache cannot store or load, from the sources of LMCache 0.3.9 to 0.5.6 and of the AWS runtime that it uses."""

from __future__ import annotations

from pytest_kvcache.serving.diagnosis.cause import cause

#: Words that show that LMCache was at work on the tier's storage.
_STORAGE = r"lmcache/v1/(?:storage_backend|distributed)|L2Adapter|FSConnector|\.data\b|\.tmp\b|/kvcache-\w"
_S3 = r"\bS3\b|\bs3_|_s3\b|/s3|botocore|S3L2Adapter"
_PATH_STYLE = (
    "LMCache speaks virtual-hosted style only: the bucket's own host name (bucket.host) must resolve and be known to "
    "the service (MinIO: MINIO_DOMAIN); `pytest-kvcache doctor --tier NAME` looks at it"
)

STORAGE = (
    # The tier's storage.
    cause("s3-name", "storage", r"AWS_IO_DNS", _PATH_STYLE),
    cause(
        "s3-name",
        "storage",
        r"Name or service not known|name resolution|Could not resolve host|getaddrinfo|NameResolutionError|"
        r"Could not connect to the endpoint",
        _PATH_STYLE,
        context=_S3,
    ),
    cause("s3-style", "storage", r"NoSuchBucket|PermanentRedirect|MethodNotAllowed", _PATH_STYLE),
    cause("s3-style", "storage", r"\bS3 \w+ failed\b.*: (?:301|400|404|405)$|S3Connector: .*\b404\b", _PATH_STYLE),
    cause("s3-clock", "storage", r"RequestTimeTooSkewed", "set the clocks (chrony, systemd-timesyncd)"),
    cause(
        "s3-tls",
        "storage",
        r"AWS_IO_TLS|CERTIFICATE_VERIFY_FAILED.*S3",
        "the certificate is not valid for the bucket's own host name, or the service speaks no TLS: `pytest-kvcache "
        "doctor --tier NAME` looks at it",
    ),
    cause(
        "s3-unreachable",
        "storage",
        r"AWS_IO_SOCKET|AWS_ERROR_HTTP_CONNECTION",
        "nothing answers at the endpoint, or it hung up: is the service up, and the way to it open?",
    ),
    cause(
        "s3-refused",
        "storage",
        r"found no credentials|Unable to locate credentials|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|"
        r"AWS_AUTH|AWS_ERROR_S3_INVALID_RESPONSE_STATUS|\bS3 \w+ failed\b.*: 403$",
        "the S3 service answers and refuses: check that the keys are still valid, may write, and that the bucket is "
        "there under its own host name (`pytest-kvcache doctor --tier NAME` says which)",
    ),
    cause(
        "same-temporary-file",
        "storage",
        r"No such file or directory: '[^']+' -> '[^']+\.data'|No such file or directory: '[^']+\.tmp'",
        "two servers stored the same chunk at the same time under one temporary name, and the other one was first: "
        "give each a temporary folder of its own (`relative_tmp_dir`)",
    ),
    cause(
        "no-space",
        "storage",
        r"No space left on device|\[Errno 28\]|Disk quota exceeded|\[Errno 122\]",
        "free space in the tier's storage, or raise the quota",
        context=_STORAGE,
    ),
    cause(
        "read-only",
        "storage",
        r"Read-only file system|\[Errno 30\]",
        "the tier's file system is read-only, or has become so: `dmesg` says why",
        context=_STORAGE,
    ),
    cause(
        "not-permitted",
        "storage",
        r"Permission denied|\[Errno 13\]|Operation not permitted|\[Errno 1\]",
        "this user may not write in the tier's folder: give it to the user that runs pytest (`ls -ld`, `id`; an NFS "
        "server with root_squash takes root for nobody)",
        context=_STORAGE,
    ),
    cause(
        "mount-gone",
        "storage",
        r"Stale file handle|\[Errno 116\]|Input/output error|\[Errno 5\]|Transport endpoint is not connected",
        "the tier's file system no longer answers: `dmesg` says why; mount it anew",
        context=_STORAGE,
    ),
)
