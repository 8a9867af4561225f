//! The rows of the tables.

/// A contender in one part of the benchmark: a row of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    Curl,
    CurlSynced,
    Imgfs,
    Hash,
    Skopeo,
    ImgfsAgain,
    LinkCurl,
    LinkImgfs,
    LinkImgfsAgain,
    Cat,
    HashAllCores,
    Verify,
    PushCurl2,
    PushCurl4,
    Push,
    PushSkopeo,
    PushAgain,
    CopyRead,
    CopyCurl2,
    CopyCurl4,
    Copy,
    CopySkopeo,
    CopyAgain,
    DirLink,
    DirCp,
    DirCpSynced,
    DirCopy,
}

impl Row {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Curl | Self::LinkCurl => "`curl -Z --parallel-max 8`, no verification",
            Self::CurlSynced | Self::DirCpSynced => "the same, then `syncfs`",
            Self::Imgfs | Self::LinkImgfs => "**`imgfs pull`**",
            Self::Hash => "SHA-256 of the bytes, `openssl`, 2 processes",
            Self::Skopeo | Self::CopySkopeo => "`skopeo copy --all`, image by image",
            Self::ImgfsAgain | Self::LinkImgfsAgain => "**`imgfs pull`** again",
            Self::Cat => "`cat` to `/dev/null`",
            Self::HashAllCores => "SHA-256, `openssl`, a process for each core",
            Self::Verify => "**`imgfs verify --full`**",
            Self::PushCurl2 | Self::CopyCurl2 => "upload, `curl`, 2 blobs at a time",
            Self::PushCurl4 | Self::CopyCurl4 => "upload, `curl`, 4 blobs at a time",
            Self::Push => "**`imgfs push`**",
            Self::PushSkopeo => "`skopeo copy --all` of `dir:`, image by image",
            Self::PushAgain => "**`imgfs push`** again",
            Self::CopyRead => "download, `curl -Z --parallel-max 8` to `/dev/null`",
            Self::Copy => "**`imgfs copy`**",
            Self::CopyAgain => "**`imgfs copy`** again",
            Self::DirLink => "**`imgfs copy`**",
            Self::DirCp => "`cp -a`",
            Self::DirCopy => "**`imgfs copy --link never`**",
        }
    }
}
