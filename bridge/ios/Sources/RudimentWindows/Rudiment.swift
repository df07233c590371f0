/// One of the 40 rudiments of the Percussive Arts Society.
///
/// A Python test holds this table to `sousa_jax/rudiments.json`.
public struct Rudiment: Hashable, Sendable {
    /// The name in the model's outputs, `single_paradiddle`.
    public let slug: String
    /// The name for people, "Single Paradiddle".
    public let name: String
    /// The number on the society's sheet, 1 … 40.
    public let pasNumber: Int

    init(_ slug: String, _ name: String, _ pasNumber: Int) {
        self.slug = slug
        self.name = name
        self.pasNumber = pasNumber
    }

    /// All of them in the order of the model's classes.
    public static let all: [Rudiment] = [
        Rudiment("double_drag_tap", "Double Drag Tap", 33),
        Rudiment("double_paradiddle", "Double Paradiddle", 17),
        Rudiment("double_ratamacue", "Double Ratamacue", 39),
        Rudiment("double_stroke_open_roll", "Double Stroke Open Roll", 6),
        Rudiment("drag", "Drag", 31),
        Rudiment("drag_paradiddle_1", "Drag Paradiddle No. 1", 36),
        Rudiment("drag_paradiddle_2", "Drag Paradiddle No. 2", 37),
        Rudiment("eleven_stroke_roll", "Eleven Stroke Roll", 12),
        Rudiment("fifteen_stroke_roll", "Fifteen Stroke Roll", 14),
        Rudiment("five_stroke_roll", "Five Stroke Roll", 7),
        Rudiment("flam", "Flam", 20),
        Rudiment("flam_accent", "Flam Accent", 21),
        Rudiment("flam_drag", "Flam Drag", 30),
        Rudiment("flam_paradiddle", "Flam Paradiddle", 24),
        Rudiment("flam_paradiddle_diddle", "Flam Paradiddle-diddle", 26),
        Rudiment("flam_tap", "Flam Tap", 22),
        Rudiment("flamacue", "Flamacue", 23),
        Rudiment("inverted_flam_tap", "Inverted Flam Tap", 29),
        Rudiment("lesson_25", "Lesson 25", 34),
        Rudiment("multiple_bounce_roll", "Multiple Bounce Roll", 4),
        Rudiment("nine_stroke_roll", "Nine Stroke Roll", 10),
        Rudiment("paradiddle_diddle", "Paradiddle-diddle", 19),
        Rudiment("pataflafla", "Pataflafla", 27),
        Rudiment("seven_stroke_roll", "Seven Stroke Roll", 9),
        Rudiment("seventeen_stroke_roll", "Seventeen Stroke Roll", 15),
        Rudiment("single_drag_tap", "Single Drag Tap", 32),
        Rudiment("single_dragadiddle", "Single Dragadiddle", 35),
        Rudiment("single_flammed_mill", "Single Flammed Mill", 25),
        Rudiment("single_paradiddle", "Single Paradiddle", 16),
        Rudiment("single_ratamacue", "Single Ratamacue", 38),
        Rudiment("single_stroke_four", "Single Stroke Four", 2),
        Rudiment("single_stroke_roll", "Single Stroke Roll", 1),
        Rudiment("single_stroke_seven", "Single Stroke Seven", 3),
        Rudiment("six_stroke_roll", "Six Stroke Roll", 8),
        Rudiment("swiss_army_triplet", "Swiss Army Triplet", 28),
        Rudiment("ten_stroke_roll", "Ten Stroke Roll", 11),
        Rudiment("thirteen_stroke_roll", "Thirteen Stroke Roll", 13),
        Rudiment("triple_paradiddle", "Triple Paradiddle", 18),
        Rudiment("triple_ratamacue", "Triple Ratamacue", 40),
        Rudiment("triple_stroke_roll", "Triple Stroke Roll", 5),
    ]

    private static let bySlug = Dictionary(uniqueKeysWithValues: all.map { ($0.slug, $0) })

    /// The rudiment of a slug; nil if there is none.
    public static func named(_ slug: String) -> Rudiment? { bySlug[slug] }
}

/// A rudiment that may be it, and how likely that is.
public struct Candidate: Hashable, Sendable {
    public let rudiment: Rudiment
    public let probability: Double

    /// The likeliest first.
    ///
    /// - Parameter probabilities: in the order of `Rudiment.all`.
    public static func ranked(_ probabilities: [Double]) -> [Candidate] {
        zip(Rudiment.all, probabilities)
            .map { Candidate(rudiment: $0, probability: $1) }
            .sorted { $0.probability > $1.probability }
    }
}
