//! The one table from errors to errno.

use holdfast_client::ClientError;
use holdfast_types::name::NameError;
use holdfast_wire::namespace::NamespaceError;
use rustix::io::Errno;

/// Of a failed call.
pub fn of_client(error: &ClientError) -> Errno {
    match error {
        ClientError::Namespace(error) => of_namespace(*error),
        ClientError::Interrupted => Errno::INTR,
        ClientError::NoSpace => Errno::NOSPC,
        ClientError::Stale => Errno::STALE,
        ClientError::BadHandle => Errno::BADF,
        ClientError::TimedOut
        | ClientError::SessionOver { .. }
        | ClientError::Damaged
        | ClientError::Refused { .. }
        | ClientError::Protocol { .. }
        | ClientError::Internal => Errno::IO,
    }
}

/// Of a refusal by the namespace.
pub fn of_namespace(error: NamespaceError) -> Errno {
    match error {
        NamespaceError::NotFound => Errno::NOENT,
        NamespaceError::Exists => Errno::EXIST,
        NamespaceError::NotDirectory => Errno::NOTDIR,
        NamespaceError::IsDirectory => Errno::ISDIR,
        NamespaceError::NotEmpty => Errno::NOTEMPTY,
        NamespaceError::Invalid => Errno::INVAL,
        NamespaceError::NotPermitted => Errno::PERM,
        NamespaceError::TooManyLinks => Errno::MLINK,
        NamespaceError::TooLarge => Errno::FBIG,
        NamespaceError::NoAttribute => Errno::NODATA,
        NamespaceError::NoSpace => Errno::NOSPC,
        NamespaceError::Quota => Errno::DQUOT,
        NamespaceError::NameTooLong => Errno::NAMETOOLONG,
        NamespaceError::ReadOnly => Errno::ROFS,
        NamespaceError::Stale => Errno::STALE,
        NamespaceError::Deadlock => Errno::DEADLK,
        NamespaceError::TooManyLocks => Errno::NOLCK,
        NamespaceError::Busy => Errno::BUSY,
    }
}

/// Of bytes that are not a name.
pub fn of_name(error: NameError) -> Errno {
    match error {
        NameError::TooLong(_) => Errno::NAMETOOLONG,
        NameError::Invalid => Errno::INVAL,
    }
}
