//! `/proc/PID/environ`: the environment that a process was started with. The process can rewrite it; what is looked for
//! here is named, and never shown.

use bonafide_proto::taint::{Taint, Taints};

use super::grammar::Grammar;

/// The longest environment, in bytes: with the arguments no program is given more than 6 MiB (`bprm_stack_limits`,
/// fs/exec.c).
pub(crate) const ENVIRON_MAX: usize = 8 << 20;

/// The taints of a program that was started with this environment and reads its command line in this way.
pub(crate) fn taints(environ: &[u8], grammar: Option<&Grammar>) -> Taints {
    environ.split(|b| *b == 0).filter_map(|variable| taint(variable, grammar)).collect()
}

fn taint(variable: &[u8], grammar: Option<&Grammar>) -> Option<Taint> {
    let at = variable.iter().position(|b| *b == b'=')?;
    let (name, value) = (variable.get(..at)?, variable.get(at + 1..)?);
    match name {
        _ if value.is_empty() => None,
        b"LD_PRELOAD" => Some(Taint::Preload),
        b"LD_AUDIT" => Some(Taint::Audit),
        name => grammar.filter(|grammar| grammar.loads_by(name, value)).map(|_| Taint::Preload),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(environ: &str, program: &str) -> Vec<Taint> {
        let grammar = Grammar::of(program.as_bytes(), &[]).map(|(grammar, _)| grammar);
        taints(environ.as_bytes(), grammar).into_iter().collect()
    }

    #[test]
    fn the_loaders_variables_are_taints_of_every_program() {
        assert_eq!(of("A=b\0LD_PRELOAD=/x.so\0", "nginx"), [Taint::Preload]);
        assert_eq!(of("LD_AUDIT=x", "nginx"), [Taint::Audit]);
        assert_eq!(of("LD_PRELOAD=\0XLD_PRELOAD=x\0LD_PRELOADX=x\0LD_AUDIT\0A=LD_AUDIT=x", "nginx"), []);
    }

    #[test]
    fn an_interpreters_own_variables_are_taints_of_it_alone() {
        assert_eq!(of("BASH_ENV=/x", "bash"), [Taint::Preload]);
        assert_eq!(of("BASH_ENV=/x", "python3"), []);
        assert_eq!(of("PERL5OPT=-Mevil", "perl"), [Taint::Preload]);
        assert_eq!(of("AWKPATH=/evil", "gawk"), [Taint::Preload]);
        assert_eq!(of("ZDOTDIR=/evil", "zsh"), [Taint::Preload]);
        assert_eq!(of("PYTHON_PRESITE=evil", "python3"), [Taint::Preload]);
        assert_eq!(of("BASH_FUNC_ls%%=() { evil; }", "bash"), [Taint::Preload]);
        assert_eq!(of("BASH_FUNC_ls%%=() { evil; }", "dash"), []);
    }

    #[test]
    fn a_prompt_counts_only_with_commands_in_it() {
        for shell in ["bash", "sh", "zsh"] {
            assert_eq!(of("PS4=+ ${BASH_SOURCE}:${LINENO}: ", shell), [], "{shell}");
            for prompt in ["PS4=$(evil)", "PS4=+ `evil`", "PS4=${ evil; }"] {
                assert_eq!(of(prompt, shell), [Taint::Preload], "{shell} {prompt}");
            }
        }
        assert_eq!(of("PS4=$(evil)", "python3"), []);
    }

    #[test]
    fn options_in_a_variable_count_only_if_they_load_code() {
        for (harmless, program) in [
            ("NODE_OPTIONS=--max-old-space-size=4096 --no-warnings", "node"),
            ("NODE_OPTIONS=--title app", "node"),
            ("JAVA_TOOL_OPTIONS=-Xmx1g -Dfile.encoding=UTF-8", "java"),
            ("RUBYOPT=-W0 -w", "ruby"),
        ] {
            assert_eq!(of(harmless, program), [], "{harmless}");
        }
        for (loading, program) in [
            ("NODE_OPTIONS=--no-warnings --require /evil.js", "node"),
            ("NODE_OPTIONS=-r /evil.js", "node"),
            ("NODE_OPTIONS=--unheard-of", "node"),
            ("JAVA_TOOL_OPTIONS=-javaagent:/evil.jar", "java"),
            ("JDK_JAVA_OPTIONS=@/options", "java"),
            ("RUBYOPT=-w -r/evil", "ruby"),
            ("RUBYOPT=-wr/evil", "ruby"),
        ] {
            assert_eq!(of(loading, program), [Taint::Preload], "{loading}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>) {
            for program in ["node", "java", "bash", "nginx"] {
                let grammar = Grammar::of(program.as_bytes(), &[]).map(|(grammar, _)| grammar);
                let _ = taints(&bytes, grammar);
            }
        }
    }
}
