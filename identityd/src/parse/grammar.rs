//! The options of each interpreter, from its manual page: which take a value, which carry code, which load code.

/// What an option does to the search for the script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    Flag,
    /// Takes a value: what is attached to it, else the next argument.
    Value,
    /// Takes the next argument although more letters follow (a shell's `-eo pipefail`).
    NextArgument,
    /// All that is attached belongs to it; the next argument does not.
    Rest,
    /// Attached digits belong to it; letters after them are options again.
    Digits,
    /// Takes a value that may be a setting which loads code.
    Setting,
    /// Its value is the script.
    Script,
    /// Its value is a module to run.
    Module,
    /// Its value is code.
    Inline,
    /// The program comes from standard input.
    Stdin,
    /// Loads code before the script.
    Preload,
    /// Runs something that is not a script given by its path.
    Elsewhere,
    /// What follows is the script.
    EndOfOptions,
}

use Effect::{
    Digits, Elsewhere, EndOfOptions, Flag, Inline, Module, NextArgument, Preload, Rest, Script, Setting, Stdin, Value,
};

/// How one interpreter reads its command line.
#[derive(Debug)]
pub(crate) struct Grammar {
    /// File names without the version, e.g. `python` for `python3.11`.
    names: &'static [&'static str],
    /// Letters behind one dash.
    pub(crate) short: &'static [(&'static str, Effect)],
    /// Whole options, with their dashes.
    long: &'static [(&'static str, Effect)],
    /// Beginnings of whole options.
    prefixes: &'static [(&'static str, Effect)],
    /// Settings (`-d name=value`) that load code.
    loaders: &'static [&'static str],
    /// A lone `-`.
    pub(crate) dash: Effect,
    /// A lone `--`.
    pub(crate) double_dash: Effect,
    /// `+x` is an option too.
    pub(crate) plus: bool,
    /// `@file` holds more arguments.
    pub(crate) argument_files: bool,
    /// What the first argument that is no option is.
    pub(crate) operand: Effect,
}

impl Grammar {
    /// The grammar of the interpreter with this file name.
    pub(crate) fn of(program: &[u8]) -> Option<&'static Self> {
        let version = |b: &u8| b.is_ascii_digit() || matches!(b, b'.' | b'-');
        let fits = |name: &str| match program.strip_prefix(name.as_bytes()) {
            // `python3.13t`, `python3.11d`: builds of one version.
            Some([version_part @ .., b'd' | b't' | b'm']) if !version_part.is_empty() => {
                version_part.iter().all(version)
            }
            Some(rest) => rest.iter().all(version),
            None => false,
        };
        GRAMMARS.iter().copied().find(|g| g.names.iter().any(|name| fits(name)))
    }

    /// The effect of a letter.
    pub(crate) fn letter(&self, letter: u8) -> Option<Effect> {
        self.short.iter().find(|(letters, _)| letters.bytes().any(|l| l == letter)).map(|(_, effect)| *effect)
    }

    /// The effect of a whole option, without its `=value`.
    pub(crate) fn long(&self, name: &[u8]) -> Option<Effect> {
        let whole = self.long.iter().find(|(option, _)| option.as_bytes() == name);
        let found = whole.or_else(|| self.prefixes.iter().find(|(start, _)| name.starts_with(start.as_bytes())));
        found.map(|(_, effect)| *effect)
    }

    /// Whether a setting loads code.
    pub(crate) fn loads_code(&self, setting: &[u8]) -> bool {
        let setting = setting.trim_ascii_start();
        self.loaders.iter().any(|name| setting.starts_with(name.as_bytes()))
    }
}

/// What most interpreters have in common.
const USUAL: Grammar = Grammar {
    names: &[],
    short: &[],
    long: &[],
    prefixes: &[],
    loaders: &[],
    dash: Stdin,
    double_dash: EndOfOptions,
    plus: false,
    argument_files: false,
    operand: Script,
};

static GRAMMARS: [&Grammar; 10] = [&PYTHON, &BASH, &POSIX_SHELL, &ZSH, &PERL, &RUBY, &NODE, &JAVA, &PHP, &LUA];

/// python(1).
static PYTHON: Grammar = Grammar {
    names: &["python", "pypy"],
    short: &[("bBdEhiIOPqRsStuvVx3?", Flag), ("WXQ", Value), ("c", Inline), ("m", Module)],
    long: &[
        ("--check-hash-based-pycs", Value),
        ("--help", Flag),
        ("--help-all", Flag),
        ("--help-env", Flag),
        ("--help-xoptions", Flag),
        ("--version", Flag),
    ],
    ..USUAL
};

/// bash(1). `-o` and `-O` take the next argument wherever they stand in a cluster.
static BASH: Grammar = Grammar {
    names: &["bash", "rbash"],
    short: &[("abefhiklmnprtuvxBCDEHPT", Flag), ("oO", NextArgument), ("c", Inline), ("s", Stdin)],
    long: &[
        ("--rcfile", Value),
        ("--init-file", Value),
        ("--login", Flag),
        ("--noprofile", Flag),
        ("--norc", Flag),
        ("--noediting", Flag),
        ("--posix", Flag),
        ("--restricted", Flag),
        ("--verbose", Flag),
        ("--version", Flag),
        ("--help", Flag),
    ],
    dash: EndOfOptions,
    plus: true,
    ..USUAL
};

/// dash(1), sh(1p), ksh(1).
static POSIX_SHELL: Grammar = Grammar {
    names: &["sh", "dash", "ash", "ksh", "mksh"],
    short: &[("abCefhiIlmnpqruvVxEH", Flag), ("o", NextArgument), ("c", Inline), ("s", Stdin)],
    dash: EndOfOptions,
    plus: true,
    ..USUAL
};

/// zsh(1), zshoptions(1): nearly every letter is an option; `-b` ends them and is left unknown.
static ZSH: Grammar = Grammar {
    names: &["zsh"],
    short: &[
        ("0123456789adefghijklmnpqrtuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", Flag),
        ("o", Value),
        ("c", Inline),
        ("s", Stdin),
    ],
    long: &[("--emulate", Value), ("--version", Flag), ("--help", Flag)],
    dash: EndOfOptions,
    plus: true,
    ..USUAL
};

/// perlrun(1).
static PERL: Grammar = Grammar {
    names: &["perl"],
    short: &[
        ("acfghnpstTuUvwWX", Flag),
        ("I", Value),
        ("l0", Digits),
        ("CDFiVx", Rest),
        ("eE", Inline),
        ("mMd", Preload),
        ("S", Elsewhere),
    ],
    ..USUAL
};

/// ruby(1).
static RUBY: Grammar = Grammar {
    names: &["ruby"],
    short: &[
        ("acghlnpsUvwy", Flag),
        ("ICXE", Value),
        ("0", Digits),
        ("FiKTWx", Rest),
        ("e", Inline),
        ("r", Preload),
        ("S", Elsewhere),
    ],
    long: &[
        ("--encoding", Value),
        ("--external-encoding", Value),
        ("--internal-encoding", Value),
        ("--enable", Value),
        ("--disable", Value),
        ("--backtrace-limit", Value),
        ("--jit", Flag),
        ("--yjit", Flag),
        ("--debug", Flag),
        ("--verbose", Flag),
        ("--version", Flag),
        ("--help", Flag),
    ],
    prefixes: &[("--enable-", Flag), ("--disable-", Flag), ("--yjit-", Flag)],
    ..USUAL
};

/// node(1), `node --help`, `node --v8-options`. Options that may or may not take the next argument stay unknown.
static NODE: Grammar = Grammar {
    names: &["node", "nodejs"],
    short: &[("civh", Flag), ("C", Value), ("ep", Inline), ("r", Preload)],
    long: &[
        ("--eval", Inline),
        ("--print", Inline),
        ("-pe", Inline),
        ("--require", Preload),
        ("--import", Preload),
        ("--loader", Preload),
        ("--experimental-loader", Preload),
        ("--env-file", Preload),
        ("--env-file-if-exists", Preload),
        ("--snapshot-blob", Preload),
        ("--test", Elsewhere),
        ("--run", Elsewhere),
        ("--build-snapshot", Elsewhere),
        ("--prof-process", Elsewhere),
        ("--conditions", Value),
        ("--title", Value),
        ("--icu-data-dir", Value),
        ("--redirect-warnings", Value),
        ("--disable-warning", Value),
        ("--diagnostic-dir", Value),
        ("--dns-result-order", Value),
        ("--unhandled-rejections", Value),
        ("--input-type", Value),
        ("--max-http-header-size", Value),
        ("--stack-trace-limit", Value),
        ("--tls-min-v1.2", Flag),
        ("--tls-min-v1.3", Flag),
        ("--inspect", Flag),
        ("--inspect-brk", Flag),
        ("--inspect-wait", Flag),
        ("--enable-source-maps", Flag),
        ("--expose-gc", Flag),
        ("--expose_gc", Flag),
        ("--jitless", Flag),
        ("--pending-deprecation", Flag),
        ("--preserve-symlinks", Flag),
        ("--preserve-symlinks-main", Flag),
        ("--throw-deprecation", Flag),
        ("--trace-deprecation", Flag),
        ("--trace-uncaught", Flag),
        ("--trace-warnings", Flag),
        ("--track-heap-objects", Flag),
        ("--abort-on-uncaught-exception", Flag),
        ("--interactive", Flag),
        ("--check", Flag),
        ("--watch", Flag),
        ("--use-openssl-ca", Flag),
        ("--use-bundled-ca", Flag),
        ("--use-system-ca", Flag),
        ("--zero-fill-buffers", Flag),
        ("--version", Flag),
        ("--help", Flag),
    ],
    // V8's numbers come after `=`; node passes them on.
    prefixes: &[
        ("--no-", Flag),
        ("--harmony", Flag),
        ("--max-old-space-size", Flag),
        ("--max_old_space_size", Flag),
        ("--max-semi-space-size", Flag),
        ("--stack-size", Flag),
    ],
    ..USUAL
};

/// java(1). Options are words behind one dash or two.
static JAVA: Grammar = Grammar {
    names: &["java"],
    long: &[
        ("-jar", Script),
        ("-m", Module),
        ("--module", Module),
        ("-cp", Value),
        ("-classpath", Value),
        ("--class-path", Value),
        ("-p", Value),
        ("--module-path", Value),
        ("--upgrade-module-path", Preload),
        ("--patch-module", Preload),
        ("--add-modules", Value),
        ("--add-reads", Value),
        ("--add-exports", Value),
        ("--add-opens", Value),
        ("--limit-modules", Value),
        ("--enable-native-access", Value),
        ("--source", Elsewhere),
        ("--enable-preview", Flag),
        ("-server", Flag),
        ("-client", Flag),
        ("-ea", Flag),
        ("-da", Flag),
        ("-esa", Flag),
        ("-dsa", Flag),
        ("-enableassertions", Flag),
        ("-disableassertions", Flag),
        ("-showversion", Flag),
        ("--show-version", Flag),
        ("-verbose", Flag),
    ],
    prefixes: &[
        ("-javaagent:", Preload),
        ("-agentlib:", Preload),
        ("-agentpath:", Preload),
        ("-Xbootclasspath", Preload),
        ("-XX:Flags", Preload),
        ("-XX:VMOptionsFile", Preload),
        ("-Xrun", Preload),
        ("-D", Flag),
        ("-X", Flag),
        ("-ea:", Flag),
        ("-da:", Flag),
        ("-enableassertions:", Flag),
        ("-disableassertions:", Flag),
        ("-verbose:", Flag),
        ("-splash:", Flag),
    ],
    argument_files: true,
    operand: Elsewhere,
    ..USUAL
};

/// php(1), the command line. php-fpm serves many scripts and is no interpreter here.
static PHP: Grammar = Grammar {
    names: &["php"],
    short: &[
        ("aCeHhilnqsvw", Flag),
        ("t", Value),
        ("d", Setting),
        ("f", Script),
        ("rRBEF", Inline),
        ("cz", Preload),
        ("S", Elsewhere),
    ],
    long: &[
        ("--file", Script),
        ("--run", Inline),
        ("--process-code", Inline),
        ("--process-begin", Inline),
        ("--process-end", Inline),
        ("--process-file", Inline),
        ("--define", Setting),
        ("--docroot", Value),
        ("--php-ini", Preload),
        ("--zend-extension", Preload),
        ("--server", Elsewhere),
        ("--no-php-ini", Flag),
        ("--no-header", Flag),
        ("--version", Flag),
        ("--help", Flag),
    ],
    loaders: &[
        "auto_prepend_file",
        "auto_append_file",
        "extension",
        "zend_extension",
        "opcache.preload",
        "include_path",
    ],
    double_dash: Stdin,
    ..USUAL
};

/// lua(1), luajit(1).
static LUA: Grammar = Grammar {
    names: &["lua", "luajit"],
    short: &[("ivEW", Flag), ("e", Inline), ("l", Preload), ("j", Value), ("O", Rest), ("b", Elsewhere)],
    ..USUAL
};
