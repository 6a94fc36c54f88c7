//! What a call of the driver returns: `CUresult`, with the names and texts that `cuGetErrorName`
//! and `cuGetErrorString` give. Numbers and names are those of the CUDA driver API reference,
//! section "Data types used by CUDA driver".

use std::ffi::CStr;

/// Names every status once: the variant, its number, its name and its text.
macro_rules! statuses {
    ($($variant:ident = $number:literal, $name:literal, $text:literal;)*) => {
        /// The statuses that this driver returns. Success is `Ok(())`, number 0.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(i32)]
        pub enum Status {
            $(#[doc = $text] $variant = $number,)*
        }

        impl Status {
            /// Every status.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name of the constant in `cuda.h`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What `cuGetErrorString` says.
            pub fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        /// Name and text of any number that this driver knows, as C wants them.
        pub(crate) fn name_and_text(number: i32) -> Option<(&'static CStr, &'static CStr)> {
            /// A literal with its closing zero.
            const fn c(text: &'static str) -> &'static CStr {
                match CStr::from_bytes_with_nul(text.as_bytes()) {
                    Ok(text) => text,
                    Err(_) => panic!("a name holds a zero byte"),
                }
            }
            match number {
                0 => Some((c"CUDA_SUCCESS", c"no error")),
                $($number => Some((
                    const { c(concat!($name, "\0")) },
                    const { c(concat!($text, "\0")) },
                )),)*
                _ => None,
            }
        }
    };
}

statuses! {
    InvalidValue = 1, "CUDA_ERROR_INVALID_VALUE", "invalid argument";
    OutOfMemory = 2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory";
    NotInitialized = 3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error";
    Deinitialized = 4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down";
    DeviceUnavailable = 46, "CUDA_ERROR_DEVICE_UNAVAILABLE",
        "CUDA-capable device(s) is/are busy or unavailable";
    NoDevice = 100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected";
    InvalidDevice = 101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal";
    InvalidImage = 200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid";
    InvalidContext = 201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context";
    NoBinaryForGpu = 209, "CUDA_ERROR_NO_BINARY_FOR_GPU",
        "no kernel image is available for execution on the device";
    EccUncorrectable = 214, "CUDA_ERROR_ECC_UNCORRECTABLE",
        "uncorrectable ECC error encountered";
    UnsupportedLimit = 215, "CUDA_ERROR_UNSUPPORTED_LIMIT",
        "limit is not supported on this architecture";
    PeerAccessUnsupported = 217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
        "peer access is not supported between these two devices";
    InvalidPtx = 218, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed";
    UnsupportedPtxVersion = 222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "the provided PTX was compiled with an unsupported toolchain.";
    FileNotFound = 301, "CUDA_ERROR_FILE_NOT_FOUND", "file not found";
    InvalidHandle = 400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle";
    NotFound = 500, "CUDA_ERROR_NOT_FOUND", "named symbol not found";
    NotReady = 600, "CUDA_ERROR_NOT_READY", "device not ready";
    IllegalAddress = 700, "CUDA_ERROR_ILLEGAL_ADDRESS",
        "an illegal memory access was encountered";
    LaunchOutOfResources = 701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        "too many resources requested for launch";
    LaunchTimeout = 702, "CUDA_ERROR_LAUNCH_TIMEOUT",
        "the launch timed out and was terminated";
    PrimaryContextActive = 708, "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE",
        "cannot set while device is active in this process";
    ContextIsDestroyed = 709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed";
    Assert = 710, "CUDA_ERROR_ASSERT", "device-side assert triggered";
    HostMemoryAlreadyRegistered = 712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
        "part or all of the requested memory range is already mapped";
    HostMemoryNotRegistered = 713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
        "pointer does not correspond to a registered memory region";
    MisalignedAddress = 716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address";
    LaunchFailed = 719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure";
    NotSupported = 801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported";
    Unknown = 999, "CUDA_ERROR_UNKNOWN", "unknown error";
}

impl Status {
    /// The number that crosses the C interface.
    pub fn number(self) -> i32 {
        self as i32
    }

    /// The status of a number.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|status| status.number() == number)
    }

    /// The status of a name (`CUDA_ERROR_ILLEGAL_ADDRESS` or `illegal_address`) or of a number.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse() {
            return Self::from_number(number);
        }
        let wanted = text.to_ascii_uppercase();
        let wanted = wanted.strip_prefix("CUDA_ERROR_").unwrap_or(&wanted);
        let matches = |status: &&Self| status.name().strip_prefix("CUDA_ERROR_") == Some(wanted);
        Self::ALL.iter().find(matches).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_one_name_and_one_text() {
        for status in Status::ALL {
            let (name, text) = name_and_text(status.number()).unwrap();
            assert_eq!(name.to_str().unwrap(), status.name());
            assert_eq!(text.to_str().unwrap(), status.text());
            assert_eq!(Status::from_number(status.number()), Some(*status));
            assert_eq!(Status::parse(status.name()), Some(*status));
        }
        assert_eq!(name_and_text(12345), None);
    }

    #[test]
    fn a_status_is_read_by_name_short_name_or_number() {
        assert_eq!(Status::parse("ecc_uncorrectable"), Some(Status::EccUncorrectable));
        assert_eq!(Status::parse("700"), Some(Status::IllegalAddress));
        assert_eq!(Status::parse("CUDA_ERROR_NOTHING"), None);
    }
}
