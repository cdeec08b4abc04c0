//! A story grammar: the text on which `burn-lti demo` trains its teacher.
//!
//! The machine that runs the demo may have nothing but this repository, so the program writes its
//! own corpus. A story is a handful of sentence templates filled from one cast of people and
//! things, drawn once per story. Because every sentence speaks of the same cast, the next word
//! often depends on one far back, which is what attention has to learn and what a student with
//! fewer heads stands to lose:
//!
//! | what | where it is settled | where it is needed again |
//! |---|---|---|
//! | hero, friend, their gender | first sentences | names and pronouns to the end |
//! | the thing, its colour, what one does with it | second sentence | question, trouble, homecoming |
//! | weather or hour | second sentence | the trouble (grey → rain → umbrella), the moral |
//! | home | first sentence | what is counted, which animal comes, where things get lost |
//! | two numbers | counting | their sum, and what is left after a gift |
//! | who is in trouble | the trouble | who speaks, who is helped, who helps |
//!
//! # Example
//!
//! ```
//! use burn_lti_llama::demo::grammar::StoryGrammar;
//!
//! let corpus: Vec<String> = StoryGrammar::new(0).take(200).collect();
//! let held_out: Vec<String> = StoryGrammar::new(1).take(50).collect();
//! assert_ne!(corpus[0], held_out[0]);
//! ```

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng, rngs::StdRng};

/// The punctuation marks of the stories. Each is a word of the vocabulary by itself.
const PUNCTUATION: [char; 5] = [',', '.', '?', '“', '”'];

/// An endless, seeded source of stories of 60 to 110 words.
///
/// The same seed gives the same stories on every platform.
#[derive(Debug, Clone)]
pub struct StoryGrammar {
    rng: StdRng,
}

impl StoryGrammar {
    /// A grammar whose stories follow from `seed` alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// The next story, on one line.
    pub fn story(&mut self) -> String {
        let cast = Cast::draw(&mut self.rng);
        let counted = self.rng.random_bool(0.5);
        let gift = counted && self.rng.random_bool(0.5);

        let mut plot = vec![
            self.pick(&OPENINGS),
            self.pick(&FINDS),
            self.pick(&MEETINGS),
            self.pick(if counted { &COUNTS } else { &PLAYS }),
        ];
        if gift {
            plot.push(self.pick(&GIFTS));
        }
        plot.push(self.pick(&cast.event.scenes));
        plot.push(match (counted, gift) {
            (true, true) => self.pick(&RETURNS_AFTER_GIFT),
            (true, false) => self.pick(&RETURNS_AFTER_COUNT),
            (false, _) => self.pick(&RETURNS),
        });
        plot.push(self.pick(&MORALS));

        let sentences: Vec<String> = plot.iter().map(|template| cast.fill(template)).collect();
        sentences.join(" ")
    }

    /// Every word that can occur in a story, punctuation included, sorted and without repeats.
    ///
    /// Derived from the templates and tables that [`story`](Self::story) uses, so that it cannot
    /// fall behind them.
    #[must_use]
    pub fn vocabulary() -> Vec<&'static str> {
        let templates = TEMPLATES.iter().flat_map(|group| group.iter().copied());
        let people = PEOPLE.iter().flat_map(|people| {
            [
                people.noun,
                people.he,
                people.he_first,
                people.him,
                people.his,
                people.his_first,
            ]
            .into_iter()
            .chain(people.names)
        });
        let homes = HOMES.iter().flat_map(|home| {
            [home.place, home.items, home.animal]
                .into_iter()
                .chain(home.spots)
        });
        let things = THINGS.iter().flat_map(|thing| [thing.name, thing.verb]);
        let events = EVENTS.iter().flat_map(|event| {
            let words = event
                .weathers
                .iter()
                .chain(event.times)
                .chain(&event.scenes);
            words.copied().chain([event.moral])
        });
        let tables = [&TRAITS[..], &COLOURS, &ADULTS, &NUMBERS];

        let unique: BTreeSet<&str> = templates
            .chain(people)
            .chain(homes)
            .chain(things)
            .chain(events)
            .chain(tables.into_iter().flatten().copied())
            .flat_map(words)
            .collect();
        unique.into_iter().collect()
    }

    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        pick(&mut self.rng, from)
    }
}

impl Iterator for StoryGrammar {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        Some(self.story())
    }
}

/// What one story is about; every sentence of it is filled from here.
struct Cast {
    hero: Person,
    friend: Person,
    /// Whether the hero (or else the friend) is the one in trouble.
    hero_in_need: bool,
    adult: &'static str,
    home: &'static Home,
    /// Where the thing was found, and the other place of this home.
    spots: [&'static str; 2],
    thing: &'static Thing,
    colour: &'static str,
    event: &'static Event,
    weather: &'static str,
    time: &'static str,
    /// What the hero and the friend each find.
    found: [usize; 2],
    /// How many of the sum they give away; at least two remain.
    given: usize,
}

#[derive(Clone, Copy)]
struct Person {
    name: &'static str,
    people: &'static People,
    character: &'static str,
}

impl Cast {
    fn draw(rng: &mut StdRng) -> Self {
        let hero = Person::draw(rng);
        let mut friend = Person::draw(rng);
        while friend.name == hero.name || friend.character == hero.character {
            friend = Person::draw(rng);
        }
        let home = pick(rng, &HOMES.each_ref());
        let event = pick(rng, &EVENTS.each_ref());
        let found = [rng.random_range(2..=5_usize), rng.random_range(2..=5_usize)];
        let [first, second] = home.spots;
        Self {
            hero,
            friend,
            hero_in_need: rng.random_bool(0.5),
            adult: pick(rng, &ADULTS),
            home,
            spots: pick(rng, &[[first, second], [second, first]]),
            thing: pick(rng, &THINGS.each_ref()),
            colour: pick(rng, &COLOURS),
            event,
            weather: pick(rng, event.weathers),
            time: pick(rng, event.times),
            found,
            given: rng.random_range(2..=found[0] + found[1] - 2),
        }
    }

    /// Replaces every `{slot}` of a template.
    fn fill(&self, template: &'static str) -> String {
        let mut text = String::with_capacity(2 * template.len());
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let (slot, after) = after.split_once('}').unwrap_or((after, ""));
            text.push_str(before);
            text.push_str(self.value(slot));
            rest = after;
        }
        text.push_str(rest);
        text
    }

    /// The words for a slot: `who` or `who.form` for a person, else a property of the story.
    ///
    /// # Panics
    /// When a template of this file names a slot that does not exist.
    fn value(&self, slot: &str) -> &'static str {
        let (helper, needy) = if self.hero_in_need {
            (self.friend, self.hero)
        } else {
            (self.hero, self.friend)
        };
        let [hero_found, friend_found] = self.found;
        let sum = hero_found + friend_found;
        let (who, form) = slot.split_once('.').unwrap_or((slot, "name"));
        match who {
            "hero" => self.hero.word(form),
            "friend" => self.friend.word(form),
            "needy" => needy.word(form),
            "helper" => helper.word(form),
            "adult" => self.adult,
            "home" => self.home.place,
            "items" => self.home.items,
            "animal" => self.home.animal,
            "spot" => self.spots[0],
            "elsewhere" => self.spots[1],
            "thing" => self.thing.name,
            "use" => self.thing.verb,
            "colour" => self.colour,
            "weather" => self.weather,
            "time" => self.time,
            "moral" => self.event.moral,
            "n" => number(hero_found),
            "m" => number(friend_found),
            "sum" => number(sum),
            "given" => number(self.given),
            "left" => number(sum - self.given),
            _ => unreachable!("the story grammar has no slot '{slot}'"),
        }
    }
}

impl Person {
    fn draw(rng: &mut StdRng) -> Self {
        let people = pick(rng, &PEOPLE.each_ref());
        Self {
            name: pick(rng, &people.names),
            people,
            character: pick(rng, &TRAITS),
        }
    }

    /// One form of this person; the forms are named after the masculine.
    fn word(self, form: &str) -> &'static str {
        match form {
            "name" => self.name,
            "trait" => self.character,
            "boy" => self.people.noun,
            "he" => self.people.he,
            "He" => self.people.he_first,
            "him" => self.people.him,
            "his" => self.people.his,
            "His" => self.people.his_first,
            _ => unreachable!("the story grammar has no form '{form}' of a person"),
        }
    }
}

/// Names and pronouns of one gender.
struct People {
    noun: &'static str,
    he: &'static str,
    he_first: &'static str,
    him: &'static str,
    his: &'static str,
    his_first: &'static str,
    names: [&'static str; 6],
}

/// A place to live: it decides what can be found, counted and met there.
struct Home {
    place: &'static str,
    spots: [&'static str; 2],
    items: &'static str,
    animal: &'static str,
}

/// A thing to find, and what one does with it.
struct Thing {
    name: &'static str,
    verb: &'static str,
}

/// A trouble: the signs that come before it, how it is mended, what is learned from it.
struct Event {
    weathers: &'static [&'static str],
    times: &'static [&'static str],
    scenes: [&'static str; 2],
    moral: &'static str,
}

static PEOPLE: [People; 2] = [
    People {
        noun: "girl",
        he: "she",
        he_first: "She",
        him: "her",
        his: "her",
        his_first: "Her",
        names: ["Mia", "Lily", "Anna", "Zoe", "Nora", "Ruth"],
    },
    People {
        noun: "boy",
        he: "he",
        he_first: "He",
        him: "him",
        his: "his",
        his_first: "His",
        names: ["Tom", "Ben", "Max", "Sam", "Leo", "Finn"],
    },
];

const TRAITS: [&str; 8] = [
    "kind", "brave", "clever", "quiet", "merry", "gentle", "shy", "bold",
];

const COLOURS: [&str; 6] = ["red", "blue", "green", "yellow", "white", "brown"];

const ADULTS: [&str; 5] = ["mother", "father", "aunt", "uncle", "grandmother"];

/// The numbers in use, from two.
const NUMBERS: [&str; 9] = [
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
];

static HOMES: [Home; 4] = [
    Home {
        place: "by the sea",
        spots: ["on the sand", "behind a rock"],
        items: "shells",
        animal: "crab",
    },
    Home {
        place: "on a farm",
        spots: ["in the barn", "near the gate"],
        items: "apples",
        animal: "pig",
    },
    Home {
        place: "in the forest",
        spots: ["under a tree", "beside the path"],
        items: "nuts",
        animal: "fox",
    },
    Home {
        place: "in a village",
        spots: ["behind the school", "near the well"],
        items: "flowers",
        animal: "goat",
    },
];

static THINGS: [Thing; 10] = [
    Thing {
        name: "ball",
        verb: "throw",
    },
    Thing {
        name: "kite",
        verb: "fly",
    },
    Thing {
        name: "book",
        verb: "read",
    },
    Thing {
        name: "bell",
        verb: "ring",
    },
    Thing {
        name: "boat",
        verb: "sail",
    },
    Thing {
        name: "hat",
        verb: "wear",
    },
    Thing {
        name: "box",
        verb: "open",
    },
    Thing {
        name: "cup",
        verb: "fill",
    },
    Thing {
        name: "key",
        verb: "turn",
    },
    Thing {
        name: "drum",
        verb: "beat",
    },
];

const BY_DAY: &[&str] = &["morning", "day"];
const FAIR: &[&str] = &["sunny", "warm", "bright"];

static EVENTS: [Event; 8] = [
    Event {
        weathers: &["grey", "cloudy"],
        times: BY_DAY,
        scenes: [
            "Soon it began to rain, and {needy} got wet. “Come under my umbrella,” said {helper}, \
             and {needy} was dry again.",
            "Then the rain came. “I am wet,” said {needy}. {helper} had an umbrella, and soon \
             {needy.he} was dry again.",
        ],
        moral: "It is wise to be ready for rain",
    },
    Event {
        weathers: &["windy"],
        times: BY_DAY,
        scenes: [
            "Then the wind took the {thing} away. “We will find it,” said {helper}, and at last \
             they saw it {elsewhere}.",
            "Then the wind took the {thing} away. {needy} began to cry, but {helper} found it \
             {elsewhere}.",
        ],
        moral: "You must never give up",
    },
    Event {
        weathers: &["cold", "snowy"],
        times: BY_DAY,
        scenes: [
            "Soon {needy} was very cold. “Take my coat,” said {helper}. {needy} put it on and \
             {needy.he} was warm again.",
            "Then snow began to fall. “I am cold,” said {needy}. {helper} gave {needy.him} \
             {helper.his} coat, and soon {needy.he} was warm.",
        ],
        moral: "A good friend keeps you warm",
    },
    Event {
        weathers: FAIR,
        times: BY_DAY,
        scenes: [
            "Soon {needy} was hungry. “I have some bread,” said {helper}, and {helper.he} gave \
             {needy.him} half of it.",
            "“I am hungry,” said {needy}. {helper} had some bread, and {helper.he} gave \
             {needy.him} half.",
        ],
        moral: "It is good to share",
    },
    Event {
        weathers: FAIR,
        times: BY_DAY,
        scenes: [
            "Then {needy} fell and hurt {needy.his} knee. “Do not cry,” said {helper}. \
             {helper.He} washed the knee, and soon {needy.he} could run again.",
            "Then {needy} fell and hurt {needy.his} hand. {helper} washed the hand with water. \
             “Thank you,” said {needy}.",
        ],
        moral: "It is good to help a friend",
    },
    Event {
        weathers: FAIR,
        times: BY_DAY,
        scenes: [
            "Then {needy} let the {thing} fall in the mud. “I am sorry,” said {needy}. {helper} \
             washed it, and it was {colour} again.",
            "Then the {thing} fell in the mud. “I am sorry,” said {needy}. “We can wash it,” said \
             {helper}, and it was {colour} again.",
        ],
        moral: "It is right to say sorry",
    },
    Event {
        weathers: FAIR,
        times: BY_DAY,
        scenes: [
            "They saw a {animal} in a hole. “We must help it,” said {helper}. {needy} \
             had a rope, and soon it was out.",
            "Then {needy} saw a {animal} in a hole. {helper} had a rope, and \
             the {animal} was out. “You can run,” said {needy}.",
        ],
        moral: "Big ones must help small ones",
    },
    Event {
        weathers: FAIR,
        times: &["evening"],
        scenes: [
            "Soon it was dark, and {needy} was afraid. “I have a lamp,” said {helper}, and soon \
             {needy.he} could see the way.",
            "Then night came. “I am afraid of the dark,” said {needy}. {helper} had a lamp, and \
             soon they saw the way.",
        ],
        moral: "A small lamp can beat the dark",
    },
];

const OPENINGS: [&str; 3] = [
    "There was a {hero.trait} {hero.boy} named {hero} who lived {home}.",
    "{hero} was a {hero.trait} {hero.boy} who lived {home}.",
    "A {hero.trait} {hero.boy} named {hero} lived {home} with {hero.his} {adult}.",
];

const FINDS: [&str; 2] = [
    "One {weather} {time} {hero.he} found a {colour} {thing} {spot}.",
    "One {weather} {time} {hero.he} picked up a {colour} {thing} {spot}.",
];

const MEETINGS: [&str; 3] = [
    "{hero.His} friend {friend}, a {friend.trait} {friend.boy}, came to see it.",
    "Then {hero.he} met {friend}, a {friend.trait} {friend.boy}.",
    "{hero.He} showed it to {friend}, a {friend.trait} {friend.boy}.",
];

const PLAYS: [&str; 3] = [
    "“May I {use} it?” asked {friend}. “Yes,” said {hero}, and {hero.he} gave {friend.him} the \
     {thing}.",
    "“Can you {use} a {thing}?” asked {hero}. “Yes, I can {use} it well,” said {friend}.",
    "“I like your {colour} {thing},” said {friend}. “Let us {use} it,” said {hero}.",
];

const COUNTS: [&str; 3] = [
    "{hero} found {n} {items} and {friend} found {m}, so they had {sum} {items} in all.",
    "“I have {n} {items},” said {hero}. “I have {m},” said {friend}. That made {sum} {items}.",
    "They looked for {items}. {friend} found {m} and {hero} found {n}. That made {sum}.",
];

const GIFTS: [&str; 2] = [
    "They gave {given} to a {animal} and kept {left}.",
    "They gave {given} {items} to a {animal}.",
];

const RETURNS: [&str; 3] = [
    "At night {hero} put the {colour} {thing} beside {hero.his} bed.",
    "When {hero} came home, {hero.he} showed the {colour} {thing} to {hero.his} {adult}.",
    "“What did you find?” asked {hero.his} {adult}. “A {colour} {thing},” said {hero}.",
];

const RETURNS_AFTER_COUNT: [&str; 2] = [
    "At night {hero} put the {colour} {thing} and the {sum} {items} beside {hero.his} bed.",
    "“What did you find?” asked {hero.his} {adult}. “A {colour} {thing} and {sum} \
     {items},” said {hero}.",
];

const RETURNS_AFTER_GIFT: [&str; 2] = [
    "At night {hero} put the {colour} {thing} and the {left} {items} beside {hero.his} bed.",
    "“What did you find?” asked {hero.his} {adult}. “A {colour} {thing} and {left} \
     {items},” said {hero}.",
];

const MORALS: [&str; 3] = [
    "“{moral},” said {hero.his} {adult}.",
    "“You are a {hero.trait} {hero.boy},” said {hero.his} {adult}. “{moral}.”",
    "{hero} and {friend} never forgot that {time}. {moral}.",
];

/// All sentence templates but those of [`EVENTS`].
const TEMPLATES: [&[&str]; 10] = [
    &OPENINGS,
    &FINDS,
    &MEETINGS,
    &PLAYS,
    &COUNTS,
    &GIFTS,
    &RETURNS,
    &RETURNS_AFTER_COUNT,
    &RETURNS_AFTER_GIFT,
    &MORALS,
];

/// The words and punctuation marks of a text or template, slots dropped, in no useful order.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split('{')
        .map(|part| part.split_once('}').map_or(part, |(_slot, after)| after))
        .flat_map(|part| {
            part.split(|c: char| c.is_whitespace() || PUNCTUATION.contains(&c))
                .filter(|word| !word.is_empty())
                .chain(part.matches(PUNCTUATION))
        })
}

fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

fn number(n: usize) -> &'static str {
    NUMBERS[n - 2]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const MANY: usize = 5_000;

    #[test]
    fn a_seed_gives_the_same_stories_again() {
        let stories = |seed| StoryGrammar::new(seed).take(50).collect::<Vec<_>>();
        assert_eq!(stories(7), stories(7));
        assert_ne!(stories(7), stories(8));
    }

    #[test]
    fn the_vocabulary_is_what_the_stories_use_and_no_more() {
        let vocabulary: HashSet<&str> = StoryGrammar::vocabulary().into_iter().collect();
        let mut unseen = vocabulary.clone();
        for story in StoryGrammar::new(0).take(MANY) {
            for word in words(&story) {
                assert!(vocabulary.contains(word), "'{word}' in: {story}");
                unseen.remove(word);
            }
        }
        assert!(unseen.is_empty(), "never used: {unseen:?}");
        assert!((150..=250).contains(&vocabulary.len()));
    }

    #[test]
    fn the_vocabulary_is_sorted_and_has_no_repeats() {
        assert!(StoryGrammar::vocabulary().is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn stories_have_60_to_110_words_and_stay_on_one_line() {
        for story in StoryGrammar::new(1).take(MANY) {
            let length = story.split(' ').count();
            assert!((60..=110).contains(&length), "{length} words: {story}");
            assert!(!story.contains(['\n', '{', '}']), "{story}");
        }
    }

    #[test]
    fn stories_hardly_repeat() {
        let distinct: HashSet<String> = StoryGrammar::new(2).take(MANY).collect();
        assert_eq!(distinct.len(), MANY);
    }

    #[test]
    fn every_slot_of_every_template_has_a_value() {
        let mut rng = StdRng::seed_from_u64(3);
        let scenes = EVENTS.iter().flat_map(|event| event.scenes);
        for template in TEMPLATES.iter().copied().flatten().copied().chain(scenes) {
            let text = Cast::draw(&mut rng).fill(template);
            assert!(!text.contains(['{', '}']), "{text}");
        }
    }

    #[test]
    fn a_story_is_about_two_people_and_its_numbers_add_up() {
        let mut rng = StdRng::seed_from_u64(4);
        for _ in 0..1_000 {
            let cast = Cast::draw(&mut rng);
            assert_ne!(cast.hero.name, cast.friend.name);
            let value = |slot| {
                NUMBERS
                    .iter()
                    .position(|n| *n == cast.value(slot))
                    .map(|at| at + 2)
            };
            let [n, m, sum, given, left] =
                ["n", "m", "sum", "given", "left"].map(|slot| value(slot).expect("a number"));
            assert_eq!(n + m, sum);
            assert_eq!(given + left, sum);
        }
    }
}
