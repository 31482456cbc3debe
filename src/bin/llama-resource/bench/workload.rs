//! The requests that are timed, and the times that the server says they took.

use serde_json::{Value, json};

use super::server::Server;

/// How much is asked.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Tokens of the short and of the long prompt.
    pub contexts: [u32; 2],
    /// Tokens generated behind each.
    pub predict: u32,
    /// Requests at once.
    pub parallel: u32,
    /// Tokens generated for each of them.
    pub parallel_predict: u32,
    /// The clock is the CPU time of whole requests: the short prompt's answer, the long prompt with one token.
    pub by_cpu: bool,
}

/// Tokens of each prompt of requests at once: few, so that one's prompt hardly holds up another's tokens.
const PARALLEL_PROMPT: u32 = 8;
/// Tokens generated for a warm-up.
const WARM_UP: u32 = 4;

/// The three things that are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request with the short prompt.
    Short,
    /// One with the long prompt.
    Long,
    /// Several at once.
    Parallel,
}

/// What came back.
#[derive(Debug)]
pub struct Times {
    /// Phase and milliseconds a token.
    pub phases: Vec<(String, f64)>,
    /// The text, where it must be the same in every mode; that of requests at once depends on how they meet.
    pub text: Option<String>,
}

impl Workload {
    /// What is sent, in this order.
    pub fn kinds(&self) -> &'static [Kind] {
        // One thread's work shows in its CPU time; requests at once are no finer than one.
        if self.by_cpu { &[Kind::Short, Kind::Long] } else { &[Kind::Short, Kind::Long, Kind::Parallel] }
    }

    /// The server's arguments for it.
    pub fn arguments(&self, threads: u32) -> Vec<String> {
        let longest = self.contexts.into_iter().max().unwrap_or(0) + self.predict + 64;
        let context = (longest.next_multiple_of(256) * self.parallel).to_string();
        let (threads, slots) = (threads.to_string(), self.parallel.to_string());
        ["-t", &threads, "-np", &slots, "-c", &context, "--cache-ram", "0"].map(str::to_owned).to_vec()
    }

    /// Everything once, and short: what a first request pays is not counted.
    pub fn warm_up(&self, server: &Server) -> Result<(), String> {
        let short = Self { predict: WARM_UP, parallel_predict: WARM_UP, ..self.clone() };
        self.kinds().iter().try_for_each(|kind| short.send(*kind, server).map(|_| ()))
    }

    /// Sends one kind and waits for the answers.
    pub fn send(&self, kind: Kind, server: &Server) -> Result<Times, String> {
        match kind {
            Kind::Short if self.by_cpu => self.by_cpu("decode", self.contexts[0], self.predict, server),
            Kind::Long if self.by_cpu => self.by_cpu("prefill", self.contexts[1], 1, server),
            Kind::Short => self.single(self.contexts[0], server),
            Kind::Long => self.single(self.contexts[1], server),
            Kind::Parallel => self.together(server),
        }
    }

    fn single(&self, context: u32, server: &Server) -> Result<Times, String> {
        let reply = server.post("/completion", &body(context, self.predict, 0).to_string())?;
        let phases = vec![
            (format!("prefill {context}"), per_token(&reply, "prompt", context)?),
            (format!("decode {context}"), per_token(&reply, "predicted", self.predict)?),
        ];
        Ok(Times { phases, text: reply["content"].as_str().map(str::to_owned) })
    }

    fn by_cpu(&self, what: &str, context: u32, predict: u32, server: &Server) -> Result<Times, String> {
        let before = server.cpu_ms();
        let reply = server.post("/completion", &body(context, predict, 0).to_string())?;
        let ms = server.cpu_ms() - before;
        per_token(&reply, "prompt", context)?;
        per_token(&reply, "predicted", predict)?;
        let tokens = if predict > 1 { predict } else { context };
        let phases = vec![(format!("{what} {context}"), ms / f64::from(tokens))];
        Ok(Times { phases, text: reply["content"].as_str().map(str::to_owned) })
    }

    fn together(&self, server: &Server) -> Result<Times, String> {
        let one = |slot: u32| -> Result<f64, String> {
            let request = body(PARALLEL_PROMPT, self.parallel_predict, slot);
            let reply = server.post("/completion", &request.to_string())?;
            per_token(&reply, "predicted", self.parallel_predict)
        };
        let times = std::thread::scope(|scope| {
            let one = &one;
            let threads: Vec<_> = (0..self.parallel).map(|slot| scope.spawn(move || one(slot))).collect();
            let join =
                |t: std::thread::ScopedJoinHandle<'_, _>| t.join().unwrap_or_else(|_| Err("a request panicked".into()));
            threads.into_iter().map(join).collect::<Result<Vec<f64>, String>>()
        })?;
        let mean = times.iter().sum::<f64>() / times.len().max(1) as f64;
        Ok(Times { phases: vec![(format!("{} at once", self.parallel), mean)], text: None })
    }
}

/// A request for exactly so many tokens, from token ids, so that the length is exact. Nothing is cached.
fn body(prompt: u32, predict: u32, slot: u32) -> Value {
    // Ids that every vocabulary has, and that do not begin alike in two slots.
    let ids: Vec<u32> = (0..prompt).map(|i| 200 + (i * 37 + slot * 101) % 800).collect();
    json!({
        "prompt": ids, "n_predict": predict, "id_slot": slot, "temperature": 0, "seed": 1, "cache_prompt": false,
        "ignore_eos": true, "stream": false,
    })
}

/// Milliseconds a token by the server's own clock. The tokens must be as many as were asked for.
fn per_token(reply: &Value, key: &str, expected: u32) -> Result<f64, String> {
    let timings = &reply["timings"];
    let n = timings[format!("{key}_n")].as_u64();
    let ms = timings[format!("{key}_ms")].as_f64();
    match (n, ms) {
        (Some(n), Some(ms)) if n == u64::from(expected) && ms > 0.0 => Ok(ms / n as f64),
        (Some(n), Some(_)) if n != u64::from(expected) => {
            Err(format!("the server's {key}_n is {n}, expected {expected}: it did not do what it was asked"))
        }
        _ => Err("the server's answer has no `timings`: expected a llama-server".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Workload, body, per_token};
    use serde_json::json;

    #[test]
    fn times_are_those_of_the_server() {
        let reply = json!({"timings": {"prompt_n": 4, "prompt_ms": 10.0, "predicted_n": 0, "predicted_ms": 0.0}});
        assert_eq!(per_token(&reply, "prompt", 4), Ok(2.5));
        assert!(per_token(&reply, "prompt", 5).unwrap_err().contains("prompt_n is 4, expected 5"));
        assert!(per_token(&reply, "predicted", 0).unwrap_err().contains("no `timings`"));
        assert!(per_token(&json!({}), "prompt", 4).is_err());
    }

    #[test]
    fn every_slot_has_room_for_the_longest_request() {
        let workload = Workload { contexts: [32, 384], predict: 24, parallel: 4, parallel_predict: 16, by_cpu: false };
        let arguments = workload.arguments(2);
        assert_eq!(arguments[..6], ["-t", "2", "-np", "4", "-c", "2048"]);
        assert_eq!(body(3, 5, 1)["prompt"], json!([301, 338, 375]));
    }
}
